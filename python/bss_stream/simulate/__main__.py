"""The entry of the simulator's own process: see `process`."""

import sys

from bss_stream.simulate.process import main

sys.exit(main())
