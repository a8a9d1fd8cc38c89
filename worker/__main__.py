"""Entry point of ``python -m worker``."""

import gc

gc.disable()  # while it loads: a tenth of that time, for what all stays

from worker.main import main  # noqa: E402

gc.freeze()
gc.enable()
main()
