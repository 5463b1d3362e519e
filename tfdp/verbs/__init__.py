"""What the larger verbs of the command line define and do; tfdp.cli puts them together."""
