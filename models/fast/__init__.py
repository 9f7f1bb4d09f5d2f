"""The same operations, faster; their plain forms are models/ and losses/, in torch's own layers.

A fast form is a subclass of the plain one with the same parameters and another forward. Which there are, and that a
model has them unless OMNISAT_PLAIN=1 (utils/plain.py), stands in one place: FORMS and `fast_form` of omnisat.py.
Nothing outside this folder asks whether torch.compile is at work, or which device it is on.
"""
