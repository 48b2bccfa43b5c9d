"""What a process tells of itself over HTTP: metrics, whether it lives, whether it is ready."""
