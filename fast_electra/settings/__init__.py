"""A run as a value: what can be set, what is refused, and the recipes that have names.

require      refusing a setting: its name, its value and the way out
run_config   how a run trains: optimizer, length, batch, rhythm
config       all of a run, as frozen dataclasses
config_file  the JSON that is saved with every run
recipes      runs worth naming
"""
