/* SPDX-License-Identifier: MIT */
#pragma once

/*
 * Orders version numbers as Debian's policy does for a version's parts (section 5.6.12, and so dpkg
 * and, nearly, `sort -V`): digits by their value, letters before all other characters, a tilde
 * before everything, even the end. Less than, equal to or more than 0, as strcmp().
 */
int version_compare(const char *a, const char *b);
