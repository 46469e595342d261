"""Who explores, and where: the search on Ray Tune and Optuna, its files and its command line."""
