"""What the operators and the sensor do when they run: the halves of them that a DAG file does not need.

What must stay true: nothing that is imported when a DAG is parsed imports this; an operator does when it begins to
run, so that all of it is there before money is spent.
"""
