"""From a name to a network: torchvision's builders, timm's, the CIFAR ResNets, and a callable of the user's own.

Nothing here downloads anything unless the library's own weights are asked for by ``pretrained``.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from chansurg.surgery.architecture import Architecture
from chansurg.surgery.errors import InputError
from chansurg.surgery.forwards.skeleton import meta_copy
from chansurg.surgery.reading import cifar
from chansurg.surgery.reading.initialisation import random_initialisers_skipped
from chansurg.surgery.reading.preprocessing import preprocessing_of as preprocessing_of

SOURCES = ("torchvision", "timm", "cifar")

# Both warn and then spend seconds on drawing from scipy unless told whether to initialise.
_ASK_FOR_INITIALISATION = ("googlenet", "inception_v3")


def timm_is_installed() -> bool:
    """Whether timm can be imported, without importing it."""
    try:
        return importlib.util.find_spec("timm") is not None
    except (ImportError, ValueError):
        return False


def torchvision_names(kind: str = "") -> list[str]:
    """Names of torchvision's builders: ``""`` all, else ``classification``, ``segmentation``, ``detection``, ``video``.

    The quantised twins of other networks are left out of everything but ``""``: their state dicts say the same.
    """
    from torchvision import models

    if not kind:
        return list(models.list_models())
    if kind == "classification":
        return list(models.list_models(module=models))
    return list(models.list_models(module=getattr(models, kind)))


def parse_architecture(text: str) -> Architecture:
    """What ``--arch`` means: ``resnet50``, ``torchvision/resnet50``, ``timm/resnet50``, ``cifar/resnet20-b``, ``pkg.mod:factory``.

    A bare name is torchvision's, or timm's where torchvision has none of that name. ``cifar/`` names take ``-b`` for
    projection shortcuts. A factory is only named here; it is imported when something is built.

    Raises:
        InputError: no library has a network of that name; the nearest names are told.
    """
    text = text.strip()
    source, slash, name = text.partition("/")
    if not slash and ":" in text:
        return Architecture("factory", text)
    if not slash:
        if text in torchvision_names():
            return Architecture("torchvision", text)
        if timm_is_installed() and _timm_has(text):
            return Architecture("timm", text)
        raise _unknown(text)
    if source == "torchvision" and name in torchvision_names():
        return Architecture(source, name)
    if source == "cifar" and name in cifar.NAMES:
        return Architecture(source, name)
    if source == "timm":
        if not timm_is_installed():
            raise _timm_is_missing(text)
        if _timm_has(name):
            return Architecture(source, name)
    raise _unknown(text)


def build(architecture: Architecture, *, device: str = "meta", initialise: bool = True) -> nn.Module:
    """The network, in eval mode, without anybody's weights.

    Args:
        architecture: which one.
        device: ``meta`` (shapes only) or a real device.
        initialise: on a real device, run the random initialisers; off, parameters hold whatever their memory held.

    A network that cannot be built on the meta device is built on the CPU without initialising and copied to it as shapes.

    Raises:
        InputError: unknown name, a keyword argument that the builder does not take, or a factory that is missing or fails.
    """
    make = _maker(architecture, initialise=initialise and device != "meta")
    if device == "meta":
        try:
            with torch.device("meta"):
                return make().eval()
        except (NotImplementedError, RuntimeError):
            with random_initialisers_skipped():
                return meta_copy(make())
        except Exception as error:
            raise _failed(architecture, error) from error
    try:
        with nullcontext() if initialise else random_initialisers_skipped(), torch.device(device):
            return make().eval()
    except InputError:
        raise
    except Exception as error:
        raise _failed(architecture, error) from error


def fresh(architecture: Architecture, *, pretrained: bool = False, seed: int = 0) -> nn.Module:
    """The network on the CPU, in eval mode, with ordinary random weights or the library's own.

    Args:
        architecture: which one; see :func:`published` for the keyword arguments that published weights bring along.
        pretrained: the library's own default weights, downloaded unless they already were.
        seed: of the random weights; the global random state is left as it was.

    Raises:
        InputError: as :func:`build`; or there are no published weights, or they could not be downloaded.
    """
    if pretrained:
        return _with_published_weights(architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(architecture, device="cpu")


def published(architecture: Architecture) -> Architecture:
    """The architecture as the library builds it around its own weights.

    Torchvision's GoogLeNet and Inception were trained on another normalisation, so with published weights their builders put a
    conversion of the input in front (``transform_input``).
    """
    if architecture.source == "torchvision" and architecture.name in _ASK_FOR_INITIALISATION:
        return Architecture(architecture.source, architecture.name, {**architecture.kwargs, "transform_input": True})
    return architecture


def variants(architecture: Architecture) -> tuple[Architecture, ...]:
    """The architecture as named, then its forms with or without auxiliary heads."""
    if architecture.source != "torchvision":
        return (architecture,)
    if architecture.name in _ASK_FOR_INITIALISATION:
        changed: dict[str, Any] = {"aux_logits": False}
    elif architecture.name in torchvision_names("segmentation") and _takes(architecture, "aux_loss"):
        changed = {"aux_loss": True}
    else:
        return (architecture,)
    return (architecture, Architecture(architecture.source, architecture.name, {**changed, **architecture.kwargs}))


def _takes(architecture: Architecture, keyword: str) -> bool:
    return keyword in inspect.signature(_torchvision_builder(architecture)).parameters


def _maker(architecture: Architecture, *, initialise: bool) -> Callable[[], nn.Module]:
    """A call that builds the network on the current default device."""
    kwargs = dict(architecture.kwargs)
    if architecture.source == "torchvision":
        builder = _torchvision_builder(architecture)
        known = inspect.signature(builder).parameters
        kwargs["weights"] = None
        if "weights_backbone" in known:
            kwargs["weights_backbone"] = None
        if architecture.name in _ASK_FOR_INITIALISATION:
            kwargs.setdefault("init_weights", initialise)
        call: Callable[..., Any] = builder
    elif architecture.source == "timm":
        if not timm_is_installed():
            raise _timm_is_missing(str(architecture))
        import timm

        if not _timm_has(architecture.name):
            raise _unknown(str(architecture))
        kwargs = {"model_name": architecture.name, "pretrained": False, **kwargs}
        call = timm.create_model
    elif architecture.source == "cifar":
        if architecture.name not in cifar.NAMES:
            raise _unknown(str(architecture))
        kwargs = {"name": architecture.name, **kwargs}
        call = cifar.build_cifar
    elif architecture.source == "factory":
        call = import_factory(architecture.name)
    else:
        raise _unknown(str(architecture))

    def make() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = call(**kwargs)
        if not isinstance(module, nn.Module):
            raise TypeError(f"it returned {type(module).__name__}, not a torch.nn.Module")
        return module

    return make


def import_factory(name: str) -> Callable[..., Any]:
    """The user's callable ``package.module:attribute``, imported from the current directory or ``sys.path``.

    Raises:
        InputError: the module or the attribute is missing, the module fails while it is imported, or it is not callable.
    """
    module_name, _, attribute = name.partition(":")
    where = f"--arch {name}"
    if not module_name or not attribute:
        raise InputError(
            f"'{name}' does not name a factory.",
            where=where,
            not_done="no network was built, nothing was written",
            to_do="write it as package.module:function, for example mynets.small:build",
        )
    try:
        with _current_directory_importable():
            found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(
            f"The factory's module '{module_name}' could not be imported: {type(error).__name__}: {error}",
            where=where,
            not_done="no network was built, nothing was written",
            to_do="run from the directory that contains the module, or put that directory into PYTHONPATH",
        ) from error
    try:
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        near = difflib.get_close_matches(attribute, dir(found), n=3)
        raise InputError(
            f"The module '{module_name}' has no '{attribute}'.",
            where=where,
            not_done="no network was built, nothing was written",
            to_do=f"name a function of that module{': ' + ', '.join(near) if near else ''}",
        ) from error
    if not callable(found):
        raise InputError(
            f"'{name}' is a {type(found).__name__}, not a function that builds a network.",
            where=where,
            not_done="no network was built, nothing was written",
            to_do="name a function or class that returns a torch.nn.Module when it is called",
        )
    return found  # type: ignore[no-any-return]


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _torchvision_builder(architecture: Architecture) -> Callable[..., nn.Module]:
    from torchvision import models

    if architecture.name not in torchvision_names():
        raise _unknown(str(architecture))
    return models.get_model_builder(architecture.name)  # type: ignore[no-any-return]


def _timm_has(name: str) -> bool:
    import timm

    return bool(timm.is_model(name))


def _with_published_weights(architecture: Architecture) -> nn.Module:
    architecture = published(architecture)
    model = build(architecture, device="cpu", initialise=False)
    try:
        if architecture.source == "torchvision":
            from torchvision import models

            weights = models.get_model_weights(architecture.name)
            if not hasattr(weights, "DEFAULT"):
                raise _no_published_weights(architecture)
            state = weights.DEFAULT.get_state_dict(progress=False, check_hash=True)
        elif architecture.source == "timm":
            import timm

            state = timm.create_model(architecture.name, pretrained=True, **architecture.kwargs).state_dict()
        else:
            raise _no_published_weights(architecture)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"The published weights of {architecture} could not be had: {type(error).__name__}: {error}",
            where=f"--pretrained with {architecture}",
            not_done="no network was built, nothing was written",
            to_do="connect to the network, or download the file elsewhere and give its path instead of the name",
        ) from error
    own = model.state_dict()
    try:
        model.load_state_dict({key: value for key, value in state.items() if key in own})
    except RuntimeError as error:
        raise InputError(
            f"The published weights do not fit {architecture} with {dict(architecture.kwargs)}.",
            where=f"--pretrained with {architecture}",
            not_done="no network was built, nothing was written",
            to_do="leave the number of classes as the library has it, or load a checkpoint that was trained for yours",
        ) from error
    return model


def _no_published_weights(architecture: Architecture) -> InputError:
    return InputError(
        f"There are no published weights for {architecture}.",
        where=f"--pretrained with {architecture}",
        not_done="no network was built, nothing was written",
        to_do="give the path of a checkpoint, or leave out --pretrained for random weights",
    )


def _failed(architecture: Architecture, error: Exception) -> InputError:
    arguments = ", ".join(f"{key}={value!r}" for key, value in architecture.kwargs.items())
    return InputError(
        f"{architecture} could not be built: {type(error).__name__}: {error}",
        where=f"{architecture}({arguments})",
        not_done="no network was built, nothing was written",
        to_do="correct the factory or its arguments; called like this it must return a torch.nn.Module",
    )


def _timm_is_missing(text: str) -> InputError:
    return InputError(
        f"{text} needs timm, which is not installed.",
        where=f"--arch {text}",
        not_done="no network was built, nothing was written",
        to_do="Install it: pip install 'chansurg[timm]'",
    )


def _unknown(text: str) -> InputError:
    full = [f"torchvision/{name}" for name in torchvision_names()] + [f"cifar/{name}" for name in cifar.NAMES]
    if timm_is_installed():
        import timm

        full += [f"timm/{name}" for name in timm.list_models()]
    by_name: dict[str, str] = {}
    for candidate in full:
        by_name.setdefault(candidate.partition("/")[2], candidate)
    near = difflib.get_close_matches(text, full, n=3, cutoff=0.7)
    near += [by_name[name] for name in difflib.get_close_matches(text.rpartition("/")[2], by_name, n=3)]
    told = ", ".join(dict.fromkeys(near)) or "nothing comes near it"
    return InputError(
        f"No architecture is called '{text}'.",
        where=f"--arch {text}",
        not_done="no network was built, nothing was written",
        to_do=f"use a name of torchvision, timm/…, cifar/… or package.module:factory; nearest: {told}",
    )
