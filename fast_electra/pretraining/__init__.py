"""A run from its config to its summary.

choices     what a config leaves to the machine
setup_run   corpora, auxiliary model, engine: ready to train
precompute  replacement paths of a corpus, by any number of processes
health      broken updates, spikes and floors of a run
progress    what a run says of itself
pretrain    the loop
status      what a run's folder says from outside
"""
