"""How the kernels' OpenMP threads wait for one another. GNU's runtime reads it once, when torch is loaded."""

import os

# By itself a thread spins for milliseconds before it sleeps, at each of the thousands of barriers of a batch. Beside
# other work it so holds a core that the thread it waits for needs. This many turns are some microseconds: enough to
# meet at the barriers of a quiet machine.
_SPINS = "4000"


def configure() -> None:
    """Call before torch is imported. Leaves alone what the environment says already."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPINS
