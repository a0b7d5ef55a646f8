"""`python -m bench.autoscale --help`."""

import argparse
import sys

from bench.autoscale import __doc__ as about
from bench.autoscale import add_arguments, run

parser = argparse.ArgumentParser(prog="python -m bench.autoscale", description=about)
add_arguments(parser)
sys.exit(run(parser.parse_args()))
