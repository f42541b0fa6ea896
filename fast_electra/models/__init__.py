"""What computes: the discriminator, the auxiliary model, and what they begin with.

encoder          from a few numbers to a stock transformers config
statistic        replacements without a model, by a statistic of the tokens
auxiliary        a masked LM, frozen, that gives samples at the masked positions
discriminator    a stock encoder with one logit a token, and its loss
initial_weights  a run that begins with the weights of an encoder
"""
