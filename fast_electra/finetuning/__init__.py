"""Pre-trained encoders on tasks: GLUE and SQuAD, several seeds.

layer_decay    smaller learning rates nearer to the input
glue           its tasks, files and measures
squad          paragraphs to windows, logits to answers
tasks          a task ready for a model
task_head      a new head on a pre-trained encoder
finetune       one task with one seed, on transformers' Trainer
finetune_runs  several tasks and seeds, one after another
"""
