"""What is compared, on what, and how it is judged: tasks, suites, splits and evaluations as data."""
