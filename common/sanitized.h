/* SPDX-License-Identifier: MIT */
#pragma once

/* 1 in builds with AddressSanitizer or ThreadSanitizer: these open files, map memory and run
 * threads as they like, and report when the process ends. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif
