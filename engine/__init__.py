"""What it takes to run a training: processes, a pool's step, resume, checkpoints, logs, options."""
