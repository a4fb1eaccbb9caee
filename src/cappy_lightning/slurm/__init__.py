"""Jobs on a cluster under SLURM: their scripts, their submission, what becomes of them."""
