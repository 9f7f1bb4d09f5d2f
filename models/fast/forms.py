"""How a fast form takes the place of a plain one, and how one of two fast forms is chosen."""
import functools

from torch.compiler import is_compiling


def change_classes(model, forms):
    """Each module whose class is in forms, {plain class: its fast form}, takes on the fast form; parameters, their
    names and their values stay. Returns the model.
    """
    for module in model.modules():
        module.__class__ = forms.get(type(module), type(module))
    return model


def traced_as(compiled):
    """Decorator of a function that torch.compile traces as another, the same but for rounding.

    The function itself calls the library's functions, one after the other. The other is written in sums, products and
    choices, which the compiler makes one kernel of: on a GPU these steps wait for memory, and each number should be
    read and written once.
    """
    def decorate(usual):
        @functools.wraps(usual)
        def form(*inputs):
            return compiled(*inputs) if is_compiling() else usual(*inputs)
        return form
    return decorate
