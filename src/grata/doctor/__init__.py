"""Which methods there are, what fits a model, and what will be refused and why, before anything is run."""
