"""The network of a vision tower, with its projector: weights in, embeddings of images out. The only part of vision with
torch.
"""
