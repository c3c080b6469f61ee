"""What `--help` says beyond the arguments."""

ABOUT = """Test-time adaptation of medical image segmentation in JAX.

A model trained at one hospital fails on another scanner's images; jaxtta adapts it on the unlabelled images themselves.

  jaxtta demo --out demo                        see the whole thing work on synthetic fundus photographs
  jaxtta convert weights.pth --out source       PyTorch weights of a ResUNet become a checkpoint
  jaxtta train --images I --masks M --out run   train a source model (the checkpoint is run/best)
  jaxtta adapt --source source --images I --out result
                                                masks, overlays and a table for a folder of images
  jaxtta finetune --source source --images I --masks M --out run
                                                go on with a few labelled images (the checkpoint is run/best)
  jaxtta rank --sources A B C --images I --out ranking
                                                which source suits these images
  jaxtta adapt-multi --sources A B C --images I --out result
                                                several source models at once, each as far as it suits the images
  jaxtta benchmark --demo                       every method compared, with costs and a report
  jaxtta pretrain --images I --out encoder      an encoder from images without labels (for train --encoder)
  jaxtta evaluate-encoder --encoders random A B ... --out result
                                                which encoder a segmentation makes most of
  jaxtta export --source source --out programs  one update as StableHLO, to run without jaxtta
  jaxtta synthesize --out data                  folders of synthetic images to try things on
"""

SETTINGS = """options of the methods (--set key=value):
  grata  auxiliary, pseudo   entropy, consistency, reconstruction, denoising, super_resolution or rotation
         rate                quadratic, linear or fixed
  all that have an optimiser
         predict             after (default) or before the update: an image is predicted with what came before it alone
  grata, tent
         optimiser           adam (default), sgd (momentum 0.99, Nesterov) or adamw
         learning_rate       1e-4 by default
         select              norm_affine (default), everything, or a regular expression over parameter paths
  eata, sar
         margin              entropy below which a pixel counts, as a share of the largest, 0.4 by default
         optimiser, learning_rate, select
                             as of tent
  eata   distance            from the mean prediction, below which a pixel is redundant, 0.05 by default
         anchor              weight of the distance to the source, 2000 by default
  sar    radius              length of the step up, 0.05 by default
         reset               entropy in nats below which the source returns, 0.2 by default: nearly always; 0.02 suits
                             two classes better, 0 is never
  memo   optimiser, learning_rate, select
                             SGD 2.5e-4 without momentum and everything by default; if one of the first two is set, the
                             other is as above
  alpha_bn
         alpha               share of the image's statistics, 0.5 by default
  progressive_bn
         tau                 1 by default; up to image tau² the source's statistics have the larger share
  dua
         momentum, decay, floor
                             share of an image in the statistics: 0.1 · 0.94ⁿ + 0.005 at image n
  domain_adaptor
         temperature         of the entropy, in deviations of the logits, 2 by default
         optimiser, learning_rate
                             SGD 1e-3 by default; if one of the two is set, the other is as above
  vptta
         alpha               the prompt's share of each axis of the spectrum, 0.01 by default
         warm_up             5 by default; up to image warm_up² the image's statistics have the larger share
         bank, neighbours    entries of the memory, 40, and how many of them a prompt starts from, 16
         extra_entry, off_centre
                             true for what the released code does; false by default
         optimiser, learning_rate
                             Adam 0.05 (0.9, 0.99) by default; if one of the two is set, the other is as above
  diga   statistics, history, classifier
                             shares of the source's statistics and of the stream's prototypes, 0.8, and of the
                             classifier, 0.2
         confidence, momentum
                             of the pixels that make a prototype, and share of a new image in the stream's, 0.9
  sictta pool, neighbours    images that the pool holds, 40; and that the statistics are taken with, 5
         contrast            how far the contrast is changed to choose them, 0.5
  dltta  bank, neighbours    images that the bank holds, 40, and that a prediction is compared with, 5
         optimiser, learning_rate, select
                             Adam 1e-3 and norm_affine by default; if one of the first two is set, the other is as above
  cotta  threshold           confidence of the source below which predictions are averaged over views, 0.9 by default;
                             above it little or nothing is learned; 1 always averages
         restore             probability that a parameter returns to the source's, 0.01
  rotta  alpha               share of a batch in the running statistics, 0.05 by default
         bank, batch         images that the bank holds, 64, and that an update takes of them, 4
  cotta, rotta
         teacher_rate        share of the student in the teacher, 0.001 by default
         optimiser, learning_rate, select
                             cotta Adam 1e-4 and everything, rotta Adam 1e-3 and norm_affine by default; if one of the
                             first two is set, the other is as above
batch_statistics, alpha_bn, progressive_bn, medbn, intent, dua, domain_adaptor, diga, sictta and vptta need a source
with batch norm; instance and group norm always use the image's own statistics, so there choose source, tent or grata.
"""

ADAPTED = """what is written:
  OUT/masks/NAME             label masks on each image's own grid: .png, or .nii or .nii.gz with the volume's geometry
  OUT/overlays/NAME.png      contours on the image or on slices (solid: prediction; pale: reference)
  OUT/probabilities/         with --probabilities: for each class a 16-bit PNG, 65535 is 1, or a NIfTI map
  OUT/predictions.csv        a row for each image: losses, cosine, rate factor, seconds, and scores if masks are given
                             (Dice in percent; ASD, ASSD and HD95 in pixels of the image, in millimetres of a volume)
  OUT/slices/NAME.csv        of a volume with a mask: the Dice of each slice
  OUT/run.json               versions, configuration, seed, device, digest of the source, means for each domain
With several folders of images there is one folder of results for each; the state starts anew at each (see --reset).
Several modalities of a volume: one 4-D file, files NAME_0000.nii.gz, NAME_0001.nii.gz, ..., or a list with the columns
image,image2,...
"""

BENCHMARKED = """protocols:
  reset         domain after domain; the state starts from the source at each
  continual     the domains as one stream, never reset
  rounds        the same three times over
  mixed         the images of all domains shuffled into one stream
  episodic      every image starts from the source
  label_shift   as reset, the images of a domain by the size of what is segmented
the file (TOML), whose entries are named as the flags; paths are relative to its folder, and a flag replaces an entry:
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
  OUT/costs.csv              seconds per image once compiled, compilation, memory, network passes, size of the state
  OUT/tables/                scores and costs as Markdown, LaTeX and CSV
  OUT/figures/, OUT/gallery/ what the report shows
  OUT/cells/                 the finished rows of each source, protocol, order, seed and method: what --resume keeps
  OUT/run.json               versions, configuration, digests of the sources, summary
Masks score and adapt nothing. The method source, which adapts nothing, is always among the methods. Mean Dice counts
domains alike; harmed are images that lose more than one point; p is Wilcoxon's, corrected by Holm.
"""

EXPORTED = """what is written:
  OUT/init.stablehlo         (source) -> state
  OUT/predict.stablehlo      (source, state, images) -> probabilities
  OUT/update.stablehlo       (key data, source, state, images) -> (state, probabilities, info)
  OUT/export.json            versions, configuration, digest of the source; all arguments and results in order
The programs take one image of the checkpoint's size; the values of the source stay in the checkpoint. It is an exchange
format, which JAX promises to read for six months, not an archive.
"""

TRAINED = """what is written:
  OUT/best, OUT/last         source models for adapt --source; best: the highest Dice on the images kept aside
  OUT/training.csv           a row for each epoch: losses, Dice, seconds
  OUT/resume                 the state that --resume goes on from
  OUT/run.json               versions, configuration, seed, device, which images were kept aside
"""

TUNED = """what is written:
  OUT/best, OUT/last         source models like any other: AC-Norm is folded into the batch norms; best: the highest
                             Dice on the images kept aside, or the last where none were
  OUT/training.csv           a row for each epoch, or for the epochs that make 25 steps: losses, Dice, seconds
  OUT/resume                 the state that --resume goes on from
  OUT/run.json               versions, configuration, seed, device, digest of the source, which images were kept aside
"""

METRICS = """metrics without labels, each from 0 to 1:
  lftm                       Dice of the prediction and that on the image masked by the network's own attention (TGMA)
  discounted_lftm            the same, less what the source predicts on an image of one colour: by lftm, networks that
                             predict the same whatever they are shown often come first
  entropy                    certainty of the prediction
  rotation, crop             Dice of the prediction and that on the image turned, or on its centre alone
"""

RANKED = """what is written:
  OUT/ranking.csv            a row for each source, best first
                             ac_corr: mean over the norm layers of AC-Corr, the same for each channel, the epoch's loss
                             others: mean over the images; with masks the true Dice in percent, and Pearson's and
                             Spearman's correlation with it over the images
  OUT/layers.csv             of ac_corr: its value for each norm layer
  OUT/images.csv             of the others: a row for each source and image
  OUT/run.json               versions, configuration, seed, device, digests of the sources; with masks the correlations
                             over all images and sources, and over the means of the sources
Sources of unequal width are ranked by ac_corr for each channel: the sum grows with the channels.
"""

MULTI_ADAPTED = """arms (--arm; the first one given is the result):
  source_NAME                a source alone; NAME is its path without the folders that all have in common
  mean                       mean of the sources' probabilities
  vote, itm, dtm, itm_dtm    a vote of the sources: all count alike; by transferability to the image (ITM), to the whole
                             target (DTM), or both
  learned                    mean with weights learned from the entropy and diversity of what comes out
  tgma, tgma_main            the two sources with the highest DTM trained further on the ITM vote: weighted pair, or its
                             main network alone
what is written, beside masks, overlays and predictions.csv of the result as adapt writes them:
  OUT/arms/ARM/              masks and predictions.csv of every other arm
  OUT/arms.csv               scores of the arms, if masks are given
  OUT/sources.csv            the sources by their DTM
  OUT/itm.csv                how well each source suits each image, slice or window, from 0 to 1
  OUT/models/                of tgma: main and auxiliary, source models as any other
  OUT/training.csv           of tgma: loss and weight of the main network after each epoch
  OUT/run.json               versions, configuration, seed, device, digests of the sources, DTM, weights, means
All images together are one target, whatever their domains.
"""

PRETRAINED = """what is written:
  OUT/last                   the encoder, for train --encoder, finetune --source and evaluate-encoder; whitening is
                             folded into an ordinary norm
  OUT/training.csv           a row for each epoch: losses, how well the two views of an image agree (alignment) and an
                             image with the queue (queue_alignment), effective rank of a batch, learning rate, seconds
  OUT/spectrum.csv           singular values of the covariance of encoder and projector on images kept aside; and
                             OUT/spectrum.png with the extra plots
  OUT/resume                 the state that --resume goes on from, a minute old at most
  OUT/run.json               versions, configuration, seed, device, which files were kept aside, effective ranks
One file of ten is kept aside, drawn by the seed. A queue longer than a few epochs has images that are their own
negatives: choose --queue by the number of images.
"""

EVALUATED = """what is written:
  OUT/evaluation.csv         a row for each protocol and encoder: mean Dice in percent over the seeds and its 95 %
                             interval (Student's t); effective rank of the encoder on the test images
  OUT/scores.csv             a row for each run: Dice of each class, mean over the test files on their own grids
  OUT/spectrum.csv           singular values of each encoder on the test images; spectrum.png with the extra plots shows
                             them, and those of the projectors that pretrain wrote beside its encoders
  OUT/run.json               versions, configuration, device, digests of the encoders, files
Images are prepared as the encoders' were. Nothing is kept aside to choose an epoch: the last one is scored. Linear
evaluation shows the images as they are, fine-tuning augments them. What is trained is scored and not kept.
A seed is that of what is trained here and of the random encoder. How much pre-training itself varies, encoders of
several pre-trainings show, each an encoder of its own.
"""
