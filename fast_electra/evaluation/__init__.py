"""What a trained model is worth.

blimp    grammatical or not, by a model's own scores
trained  a model from its folder, ready to score sentences
scores   the official measures of GLUE and SQuAD
"""
