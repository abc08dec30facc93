"""One file per contender. They run by path (`python child.py with_NAME.py ...`) in environments that need not have
fedsim, so they import nothing of ours but with_fedsim.py and with_plain.py."""
