"""A step as a list of operators: traced, made shorter and faster, and run without Python. Nothing here knows of
federations: functions of tensors go in, programs come out."""
