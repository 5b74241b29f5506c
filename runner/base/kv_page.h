/* Pages of KV cache: a page holds K and V of one head for so many tokens. It is also the chunk in
 * which decode attention splits keys, so that results never depend on where pages lie. */
#ifndef FKV_BASE_KV_PAGE_H
#define FKV_BASE_KV_PAGE_H

enum { FKV_PAGE_TOKENS = 128 };

#endif
