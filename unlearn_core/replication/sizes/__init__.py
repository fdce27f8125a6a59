"""What a profile takes, computed before it is run: memory, floating-point operations, hours.

`geometry` has the architectures of the hub's models and how many things its data sets hold; `meter` counts what
runs on tensors without contents; `work` runs each experiment's methods so, and `table` writes what comes out.
"""
