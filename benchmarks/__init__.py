"""What is measured, beside Feast and beside the floor of each job: `python -m benchmarks`, or `make bench`."""
