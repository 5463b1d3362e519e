"""Starting the tasks of a cluster: what to run (plan) apart from where it runs (local)."""
