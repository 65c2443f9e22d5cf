# SPDX-License-Identifier: GPL-2.0-or-later
"""LED triggers and input handlers (include/linux/leds.h, include/linux/input.h)."""

from __future__ import annotations

from kernels.modelled.api.common import nothing
from kernels.modelled.api.memory import GFP_ZERO, kfree, kmalloc
from kernels.modelled.api.registration import enter
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import size_of, view
from kernels.modelled.structs import struct as declare
from kernels.modelled.table import function

declare("led_trigger", "name")
LED_TRIGGER = size_of("led_trigger")
declare(
    "input_handler",
    "event events filter match connect disconnect start name",
)


@function("int led_trigger_register(struct led_trigger *trigger)")
def _led_trigger_register(k: Kernel, trigger: int) -> int:
    enter(k, "led trigger", "led_trigger", trigger)
    return 0


@function("void led_trigger_unregister(struct led_trigger *trigger)")
def _led_trigger_unregister(k: Kernel, trigger: int) -> None:
    k.registry.remove("led trigger", trigger)


@function("void led_trigger_register_simple(const char *name, struct led_trigger **trigger)")
def _led_trigger_register_simple(k: Kernel, name: int, at: int) -> None:
    trigger = kmalloc(k, LED_TRIGGER(k), GFP_ZERO)
    view(k, "led_trigger", trigger).put("name", name)
    k.store(at, trigger)
    enter(k, "led trigger", "led_trigger", trigger)


@function("void led_trigger_unregister_simple(struct led_trigger *trigger)")
def _led_trigger_unregister_simple(k: Kernel, trigger: int) -> None:
    if trigger:
        k.registry.remove("led trigger", trigger)
        kfree(k, trigger)


@function("int input_register_handler(struct input_handler *handler)")
def _input_register_handler(k: Kernel, handler: int) -> int:
    enter(k, "input handler", "input_handler", handler)
    return 0


@function("void input_unregister_handler(struct input_handler *handler)")
def _input_unregister_handler(k: Kernel, handler: int) -> None:
    k.registry.remove("input handler", handler)


nothing(
    "void led_trigger_event(struct led_trigger *trigger, enum led_brightness event)",
    "void led_trigger_blink(struct led_trigger *trigger, unsigned long on, unsigned long off)",
    "void led_trigger_blink_oneshot(struct led_trigger *t, unsigned long on, unsigned long off,"
    " int invert)",
)
