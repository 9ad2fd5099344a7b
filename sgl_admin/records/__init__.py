"""What is kept on disk: runs, jobs, smokes, the signatures of caches, archives."""
