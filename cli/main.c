/* SPDX-License-Identifier: MIT */
#include "cli/cli.h"

int main(void)
{
    return CLI_FAILED;
}
