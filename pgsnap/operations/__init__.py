"""What is done with a pipeline, one verb a file: the only room that composes all the others.

To read: ``spec`` (what a pipeline is), ``backup``, ``restore``, ``verify``, ``prune``; ``reports`` is what they return.
"""
