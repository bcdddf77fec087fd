"""Launch files for clouds, Kubernetes and Slurm, and their check."""
