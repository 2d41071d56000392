#!/bin/bash
# SPDX-License-Identifier: MIT
# The deaths of boot-deaths.sh where the kernel makes no mounts without a place.
BOOT_DEATHS_DIRECTORY=y exec "$(dirname "$0")/boot-deaths.sh"
