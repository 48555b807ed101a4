//! Writes the options of a task.

use proc_macro2::{Group, TokenStream, TokenTree};
use quote::quote;
use syn::{LitStr, Path};

use crate::attributes::{Attributes, Backoff};

/// What differs from the defaults of the engine. Every constant has a block of its own, so that no name that a field's
/// type may use is taken.
pub(crate) fn write_options(krate: &Path, attributes: &Attributes) -> TokenStream {
    let mut options = TokenStream::new();
    let Attributes { queue, priority, retries, backoff, jitter, age_max, input, .. } = attributes;
    if let Some(queue) = queue {
        options.extend(quote!(options.queue = #krate::QueueName::known(#queue);));
    }
    if let Some(level) = priority {
        options.extend(quote! {
            options.priority = {
                const PRIORITY: #krate::Priority = match #krate::Priority::new(#level) {
                    ::core::result::Result::Ok(priority) => priority,
                    ::core::result::Result::Err(_) => ::core::panic!("a priority is 0 to 9"),
                };
                PRIORITY
            };
        });
    }
    if let Some(retries) = retries {
        let attempts_max = retries + 1;
        options.extend(quote!(options.retry.attempts_max = #attempts_max;));
    }
    if let Some(backoff) = backoff {
        let backoff = write_backoff(krate, backoff);
        options.extend(quote!(options.retry.backoff = #backoff;));
    }
    if let Some(jitter) = jitter {
        options.extend(quote!(options.retry.jitter = #jitter;));
    }
    if let Some(age_max) = age_max {
        let parsed = write_duration(krate, age_max);
        options.extend(quote!({
            const AGE_MAX: ::core::time::Duration = #parsed;
            options.retry.age_max = ::core::option::Option::Some(AGE_MAX);
        }));
    }
    for (classes, list) in [(&attributes.never_retry, quote!(never)), (&attributes.only_retry, quote!(only))] {
        if !classes.is_empty() {
            options.extend(quote!(options.retry.#list = ::std::vec![#(::std::borrow::Cow::Borrowed(#classes)),*];));
        }
    }
    options.extend(write_limits(krate, attributes));
    if let Some(expires_after) = &attributes.expires_after {
        let parsed = write_duration(krate, expires_after);
        let above_zero = write_above_zero("expires_after", expires_after, &quote!(EXPIRES_AFTER));
        options.extend(quote!({
            const EXPIRES_AFTER: ::core::time::Duration = #parsed;
            #above_zero
            options.expires_after = ::core::option::Option::Some(EXPIRES_AFTER);
        }));
    }
    if let Some(result_ttl) = &attributes.result_ttl {
        let parsed = write_duration(krate, result_ttl);
        options.extend(quote!({
            const RESULT_TTL: ::core::time::Duration = #parsed;
            options.result_ttl = ::core::option::Option::Some(RESULT_TTL);
        }));
    }
    let Attributes { rate, concurrency, key_rate, key_concurrency, .. } = attributes;
    options.extend(write_rule(krate, &quote!(limit), rate.as_ref(), *concurrency));
    options.extend(write_rule(krate, &quote!(key_limit), key_rate.as_ref(), *key_concurrency));
    if let Some(input) = input {
        options.extend(quote!(options.input = ::core::option::Option::Some(#input);));
    }
    options
}

/// What may start: the engine's own parser reads the rate.
fn write_rule(krate: &Path, rule: &TokenStream, rate: Option<&LitStr>, concurrency: Option<u32>) -> TokenStream {
    let mut written = TokenStream::new();
    if let Some(rate) = rate {
        let parsed = at(rate, quote!(#krate::Rate::known(#rate)));
        written.extend(quote!({
            const RATE: #krate::Rate = #parsed;
            options.#rule.rate = ::core::option::Option::Some(RATE);
        }));
    }
    if let Some(concurrency) = concurrency {
        written.extend(quote!(options.#rule.concurrency = ::core::option::Option::Some(#concurrency);));
    }
    written
}

/// Both limits in one block, because one bounds the other.
fn write_limits(krate: &Path, attributes: &Attributes) -> TokenStream {
    let Attributes { soft_limit, hard_limit, .. } = attributes;
    let hard = if let Some(text) = hard_limit {
        let parsed = write_duration(krate, text);
        let above_zero = write_above_zero("hard_limit", text, &quote!(HARD));
        quote! {
            const HARD: ::core::time::Duration = #parsed;
            #above_zero
            options.hard_limit = HARD;
        }
    } else {
        quote!(const HARD: ::core::time::Duration = #krate::task::HARD_LIMIT_DEFAULT;)
    };
    let Some(text) = soft_limit else {
        return if hard_limit.is_some() { quote!({ #hard }) } else { TokenStream::new() };
    };
    let parsed = write_duration(krate, text);
    let above_zero = write_above_zero("soft_limit", text, &quote!(SOFT));
    let below_hard = at(
        text,
        quote! {
            ::core::assert!(
                SOFT.as_micros() < HARD.as_micros(),
                "soft_limit must be shorter than hard_limit (1h where it is not given)"
            )
        },
    );
    quote!({
        #hard
        const SOFT: ::core::time::Duration = #parsed;
        #above_zero
        const _: () = #below_hard;
        options.soft_limit = ::core::option::Option::Some(SOFT);
    })
}

/// The engine's own parser, called in a constant: a mistake in the text does not compile.
fn write_duration(krate: &Path, text: &LitStr) -> TokenStream {
    at(text, quote!(#krate::time::duration(#text)))
}

fn write_above_zero(key: &str, text: &LitStr, constant: &TokenStream) -> TokenStream {
    let message = format!("{key} must be longer than zero");
    let check = at(text, quote!(::core::assert!(!#constant.is_zero(), #message)));
    quote!(const _: () = #check;)
}

fn write_backoff(krate: &Path, backoff: &Backoff) -> TokenStream {
    match backoff {
        Backoff::Formula(text) => {
            let parsed = at(text, quote!(#krate::retry::Backoff::formula(#text)));
            quote!({
                const BACKOFF: #krate::retry::Backoff = #parsed;
                BACKOFF
            })
        }
        Backoff::List(delays) => {
            let delays = delays.iter().map(|delay| write_duration(krate, delay));
            quote!({
                const DELAYS: &[::core::time::Duration] = &[#(#delays),*];
                #krate::retry::Backoff::List(::std::borrow::Cow::Borrowed(DELAYS))
            })
        }
    }
}

/// Places code at a literal: when its constant cannot be evaluated, the compiler points there and not at the derive.
fn at(literal: &LitStr, code: TokenStream) -> TokenStream {
    let move_to = |mut token: TokenTree| {
        // Only the place moves; names are still looked up as the derive sees them.
        token.set_span(token.span().located_at(literal.span()));
        match token {
            TokenTree::Group(group) => {
                let mut moved = Group::new(group.delimiter(), at(literal, group.stream()));
                moved.set_span(group.span());
                TokenTree::Group(moved)
            }
            TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => token,
        }
    };
    code.into_iter().map(move_to).collect()
}
