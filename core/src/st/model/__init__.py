"""What a model is, to the rest of st: a family that loads parts, encodes, predicts and names its blocks.

Imports adapters' files, blocks, data's nouns and the mathematics.
Read ``family.py`` first.
"""
