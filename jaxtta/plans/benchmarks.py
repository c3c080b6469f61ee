"""The plan of a benchmark, and protocols as data: which images come when, and when a state starts from the source."""

import dataclasses
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from jaxtta.errors import InputError
from jaxtta.plans.parts import MaskValues, Plan, Streams
from jaxtta.plans.words import MANY, Orders, Seeds

RESETS = ("domain", "image", "never")
IMAGES = ("listed", "by_size", "mixed")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How images come.

    Attributes:
        reset: when the state starts from the source again: at each `"domain"`, at each `"image"`, or `"never"`.
        rounds: how often a stream passes over its images, at least 1.
        images: their order: as `"listed"`, domain after domain; `"by_size"`, those of a domain by the share of the
            picture that is structure, the smallest first; or `"mixed"`, drawn at random from all domains.

    Raises:
        InputError: a value that makes no sense.
    """

    reset: str = "domain"
    rounds: int = 1
    images: str = "listed"

    def __post_init__(self):
        for name, value, choices in (("reset", self.reset, RESETS), ("images", self.images, IMAGES)):
            if value not in choices:
                raise InputError(f"a protocol's {name} is {value!r}; choose one of {', '.join(choices)}")
        if not isinstance(self.rounds, int) or not 1 <= self.rounds <= MANY:
            told = "more" if isinstance(self.rounds, int) and self.rounds > MANY else repr(self.rounds)
            raise InputError(f"a protocol's rounds are {told}; expected a whole number from 1 on, {MANY} at most")
        if self.images == "mixed" and self.reset != "never":
            raise InputError(
                f"a protocol with mixed images has no domains to reset at: reset {self.reset!r}, not never"
            )

    @property
    def ordered(self) -> bool:
        """Whether the order of the domains matters."""
        return self.reset == "never"


# As published: reset by GraTa, continual by VPTTA, rounds by CoTTA.
PROTOCOLS = {
    "reset": Protocol(),
    "continual": Protocol("never"),
    "rounds": Protocol("never", rounds=3),
    "mixed": Protocol("never", images="mixed"),
    "episodic": Protocol("image"),
    "label_shift": Protocol(images="by_size"),
}


Sources = Annotated[tuple[str, ...] | dict[str, Path], Parameter(accepts_keys=False, metavar="[LABEL=]PATH...")]
Protocols = Annotated[tuple[str, ...] | dict[str, Protocol], Parameter(accepts_keys=False, metavar="STR...")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromFile(Plan):
    """What a plan may be read from; the fields that are given beside it replace its entries.

    Attributes:
        file: TOML file, see below.
    """

    file: Path | None = dataclasses.field(default=None, kw_only=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark(Streams, MaskValues, FromFile):
    """Compare methods on the same sources, images, protocols, orders and seeds.

    protocols:
      reset         domain after domain; the state starts from the source at each
      continual     the domains as one stream, never reset
      rounds        the same three times over
      mixed         the images of all domains shuffled into one stream
      episodic      every image starts from the source
      label_shift   as reset, the images of a domain by the size of what is segmented
    the file (TOML), whose entries are named as the flags; paths are relative to its folder, and a flag replaces an
    entry:
      images = ["north/images", "south/images"]
      masks = ["north/masks", "south/masks"]
      methods = ["batch_statistics", "tent", "tent:learning_rate=1e-3", "grata"]
      orders = [["north", "south"], ["south", "north"]]
      seeds = [0, 1, 2]
      [sources]
      plain = "plain/best"
      strong = "strong/best"
      [protocols.reset]
      [protocols.ten_rounds]          # a protocol of one's own: reset is domain, image or never; images are listed,
      reset = "never"                 # by_size or mixed
      rounds = 10
    what is written:
      OUT/report.html            tables, figures, and pictures of the largest gains and harms, in one file
      OUT/results.csv            a row for each image visited; the same bits when it is run again
      OUT/costs.csv              seconds per image once compiled, compilation, memory, network passes, size of the
                                 state
      OUT/tables/                scores and costs as Markdown, LaTeX and CSV
      OUT/figures/, OUT/gallery/ what the report shows
      OUT/cells/                 the finished rows of each source, protocol, order, seed and method: what resume keeps
      OUT/run.json               versions, configuration, digests of the sources, summary
    Masks score and adapt nothing. The method source, which adapts nothing, is always among the methods. Mean Dice
    counts domains alike; harmed are images that lose more than one point; p is Wilcoxon's, corrected by Holm.

    Attributes:
        demo: three synthetic centres and the small source models.
        sources: source models, [LABEL=]CHECKPOINT; a label is what tables call one.
        images: folders or CSV lists as of adapt: one for each domain.
        masks: one for each of the images.
        root: what the paths of a list are relative to.
        methods: names, see below; options as in tent:learning_rate=1e-3,select=everything; all when not given.
        protocols: see below.
        orders: orders of the domains, A,B,C; or how many: as given, and others drawn at random.
        seeds: of methods and mixed images, N,N,...
        against: the method that others are tested against.
        skip_bad: leave out files that cannot be read.
        out: folder to write.
        overwrite: replace the benchmark that the folder holds.
        resume: go on with what the folder holds, or add methods and seeds.
        quiet: no progress bar.
    """

    demo: bool = False
    sources: Sources = ()
    images: tuple[Path, ...] = ()
    masks: tuple[Path, ...] = ()
    root: Path | None = None
    methods: tuple[str, ...] = ()
    protocols: Protocols = ("reset",)
    orders: Orders = 1
    seeds: Seeds = (0,)
    against: str = "source"
    skip_bad: bool = False
    out: Path | None = None
    overwrite: bool = False
    resume: bool = False
    quiet: bool = False
