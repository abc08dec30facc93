"""Speed, side by side: the same federated and gossip workloads on fedsim and on other simulators, in turns.

workloads.py   what is run: model, clients, steps, rounds
world.py       a workload as files that every contender reads: examples, who holds what, who is there, first model
plain.py       the plain PyTorch loop, on one thread, on all, or in processes that share memory
drivers/       one file per contender; each runs in a process, and most in an environment, of its own
turns.py       processes that play a round when told to, one after the other
rivals.py      the contenders, their settings, their environments
race.py        a workload from start to end: what `fedsim bench --json` writes
tables.py      the same as a table
"""
