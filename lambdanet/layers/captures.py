"""The view attribute `capture`, which all attention blocks have."""

from __future__ import annotations


class Captures:
    """What a module inherits beside `nnx.Module` to be reached by `nnx.view(model, capture=True)`.

    A module that shows what it attends to sows it where `self.capture` is True:

        if self.capture:
            self.sow(nnx.Intermediate, "attention_map", weights)

    and its docstring names what it sows and the axes. The value is read with

        y, sown = nnx.capture(nnx.view(model, capture=True), nnx.Intermediate)(x)
    """

    # Of the class: an instance gets its own with the first view that names it.
    capture = False

    def set_view(self, capture: bool | None = None):
        """Switches the recording of what the module attends to.

        Args:
          capture: True sows at every call what the class's docstring names; None leaves it as it
            is.
        """
        if capture is not None:
            self.capture = capture
