"""`python -m lrc.cli`, and so `torchrun --nproc_per_node 2 -m lrc.cli train ...`."""

from lrc.cli import main

main()
