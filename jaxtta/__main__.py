"""`python -m jaxtta` is the command `jaxtta`."""

from jaxtta.cli import main

raise SystemExit(main())
