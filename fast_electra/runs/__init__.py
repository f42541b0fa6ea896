"""The folder of a run and the life of its processes: who works there, how they are stopped, how they end.

run_state     who works in a folder, and how its last start ended
run_folder    claimed once, gone on with by the same command
verified      files found whole, and unchanged since
command_line  a recipe, YAML files, dotted overrides
summary       the last page of a run, for a person
preemption    a signal ends a start where nothing is lost
failure       exit statuses, and one message for each end
watchdog      a process without progress ends itself
slurm         SLURM's description of a task, as a rendezvous
"""
