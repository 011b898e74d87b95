"""Training the whole hierarchy: every rank of a nested model, in one run.

ranks --sampler--> (R, 61, 8)      which ranks a step trains
objectives                         the loss of a rank, and how they become one
hierarchy                          model + objective as one module, one forward a step
trainer                            transformers' Trainer around it
tasks, data                        a user's files as batches
run                                from a checkpoint to a trained checkpoint, resumable
"""
