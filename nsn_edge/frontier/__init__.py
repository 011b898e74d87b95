"""The frontier: what every rank of a checkpoint is worth, measured beside predicted.

curve      points, losses, the line between neighbours, the prediction (numpy alone)
energy     how much of each layer's output a rank keeps (torch)
measures   a user's file as a number: similarity, accuracy, perplexity (torch)
measuring  from a checkpoint and a measure to the frontier (torch)
"""
