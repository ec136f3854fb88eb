"""Another device on any machine: it computes on the CPU, but its tensors do not mix with those of the CPU.

It goes by the name of mps, of which torch asks nothing but whether it is there, and like that it has no
float64, no gradient of an antialiased resize, and no right one of batch norm for channels last.
"""

import contextlib

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

READ = {"tolist", "__repr__"}  # give no tensors
MIX = {"copy_", "_has_compatible_shallow_copy_type"}  # may take tensors of two devices


class There(Tensor):
    """A tensor of the other device."""

    __torch_function__ = torch._C._disabled_torch_function_impl


def nested(change, value):
    """Apply `change` to all that is in lists, tuples and dicts."""
    if isinstance(value, dict):
        return {key: nested(change, item) for key, item in value.items()}
    if isinstance(value, list | tuple):  # or a torch.return_types
        return type(value)([nested(change, item) for item in value])
    return change(value)


def there(value):
    """Return a tensor as one of the other device, and anything else as it is."""
    if type(value) not in (Tensor, nn.Parameter):
        return value
    if value.dtype == torch.float64:
        raise TypeError("the other device has no float64")
    return value.as_subclass(There)


class OtherDevice(TorchFunctionMode):
    """Compute on the CPU what is asked of the other device; raise RuntimeError where the two are mixed."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name, found, asked = kwargs or {}, getattr(func, "__name__", ""), [], []

        def look(value):
            found.extend([value] if isinstance(value, Tensor | torch.Generator) else [])
            return value

        def redirect(value):
            if not isinstance(value, str | torch.device):
                return value
            asked.append(torch.device(value).type == "mps")
            return "cpu" if asked[-1] else value

        nested(look, [*args, kwargs])
        own = [isinstance(value, There) for value in found]
        if func == Tensor.device.__get__:
            return torch.device("mps", 0) if own[0] else torch.device("cpu")
        if name in ("to", "cpu"):  # to a device, or to that of a second tensor
            args, kwargs = nested(redirect, tuple(args)), nested(redirect, kwargs)
            goes = name == "to" and (asked + own[1:] + own)[0]
            value = func(*args, **kwargs).as_subclass(Tensor)
            value = value if goes == own[0] else value.clone()
            return there(value) if goes else value
        if "device" in kwargs:
            kwargs = kwargs | {"device": redirect(kwargs["device"])}
        if not (asked[0] if asked else any(own)):  # nothing of the other device is asked for
            return func(*args, **kwargs)
        if name in ("numpy", "__array__") or any(isinstance(value, torch.Generator) for value in found):
            raise TypeError(f"{name}: a tensor of the other device with something of the CPU")
        if name == "__deepcopy__":
            copy = there(found[0].detach().clone().as_subclass(Tensor))
            copy._is_param = getattr(found[0], "_is_param", False)  # what isinstance(copy, nn.Parameter) asks
            return copy.requires_grad_(found[0].requires_grad)
        if name == "__reduce_ex__":
            return found[0].as_subclass(Tensor).__reduce_ex__(args[1])
        if name == "register_hook":
            args = (args[0], lambda gradient, hook=args[1]: hook(there(gradient)))
        # A number of the CPU, and indices of it, are allowed.
        mixed = any(value.ndim and not isinstance(value, There) for value in found)
        if mixed and not asked and name not in MIX and not (name == "__getitem__" and own[0]):
            raise RuntimeError(f"{name} of tensors on two devices")
        if name == "batch_norm" and not args[0].is_contiguous():
            raise RuntimeError("batch norm of channels last, whose gradient is wrong there")
        if name == "interpolate" and kwargs.get("antialias") and args[0].requires_grad:
            raise NotImplementedError("the gradient of an antialiased resize")
        value = func(*args, **kwargs)
        return value if name in READ else nested(there, value)


@contextlib.contextmanager
def other_device(monkeypatch):
    """Let torch find the other device, and no GPU, for the length of a with block; yields it."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # Parameters become new ones of the other device.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with OtherDevice():
            yield torch.device("mps")
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
