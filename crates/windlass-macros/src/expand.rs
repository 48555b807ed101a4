//! Writes the impl.

use proc_macro2::TokenStream;
use quote::quote;
use syn::ext::IdentExt;
use syn::{DeriveInput, Error, Path, Result, parse_quote};

use crate::attributes::{Attributes, Problems, name_problem};
use crate::docs::doc;
use crate::fields::{Field, Fields, Presence};
use crate::options::write_options;

/// The `impl Task` of a struct.
///
/// # Errors
/// Everything that is wrong with the struct and its attributes, at the place where it is written.
pub(crate) fn task(input: &DeriveInput) -> Result<TokenStream> {
    let mut problems = Problems::default();
    let attributes = problems.note(Attributes::read(&input.attrs));
    // The shape of the struct can be judged without its attributes.
    let fields = problems.note(Fields::read(input, attributes.as_ref().unwrap_or(&Attributes::default())));
    let name = attributes.as_ref().and_then(|attributes| problems.note(task_name(input, attributes)));
    if let (Some(attributes), Some(fields)) = (&attributes, &fields) {
        problems.note(check_input(attributes, fields));
    }
    let written = match (attributes, fields, name) {
        (Some(attributes), Some(fields), Some(name)) => write(input, &attributes, &fields, &name),
        // What is not there is a problem that was noted.
        _ => TokenStream::new(),
    };
    problems.none_or(written)
}

fn task_name(input: &DeriveInput, attributes: &Attributes) -> Result<String> {
    if let Some(name) = &attributes.name {
        return Ok(name.value());
    }
    let name = snake_case(&input.ident.unraw().to_string());
    match name_problem("task name", &name) {
        None => Ok(name),
        Some(problem) => {
            Err(Error::new_spanned(&input.ident, format!("{problem}; give it one with `#[task(name = \"..\")]`")))
        }
    }
}

/// `SendHTTPMail` → `send_http_mail`.
fn snake_case(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    let mut snake = String::new();
    for (at, letter) in letters.iter().enumerate() {
        let before = at.checked_sub(1).map(|before| letters[before]);
        let word_before = before.is_some_and(|before| before.is_lowercase() || before.is_ascii_digit());
        let word_after =
            before.is_some_and(char::is_uppercase) && letters.get(at + 1).is_some_and(|next| next.is_lowercase());
        if letter.is_uppercase() && (word_before || word_after) {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}

fn check_input(attributes: &Attributes, fields: &Fields) -> Result<()> {
    let (Some(input), Fields::Named(fields)) = (&attributes.input, fields) else { return Ok(()) };
    let wanted = input.value();
    if fields.iter().any(|field| field.name == wanted) {
        return Ok(());
    }
    let takes = fields.iter().map(|field| field.name.as_str()).collect::<Vec<_>>().join(", ");
    let takes = if takes.is_empty() { "no arguments" } else { &takes };
    Err(Error::new(input.span(), format!("there is no argument `{wanted}`; the task takes {takes}")))
}

fn write(input: &DeriveInput, attributes: &Attributes, fields: &Fields, name: &str) -> TokenStream {
    let krate = attributes.krate.clone().unwrap_or_else(|| parse_quote!(::windlass));
    let ident = &input.ident;
    let where_clause = &input.generics.where_clause;
    let doc = doc(&input.attrs);
    let output = attributes.output.clone().unwrap_or_else(|| parse_quote!(()));
    let fields = write_fields(&krate, fields);
    let options = write_options(&krate, attributes);
    // A `OnceLock`, not a `LazyLock`: the closure of a static could not say `Self`, which a field's type may.
    quote! {
        #[automatically_derived]
        impl #krate::Task for #ident #where_clause {
            type Output = #output;
            const NAME: &'static str = #name;
            fn definition() -> &'static #krate::task::Definition {
                static DEFINITION: ::std::sync::OnceLock<#krate::task::Definition> = ::std::sync::OnceLock::new();
                DEFINITION.get_or_init(|| {
                    #[allow(unused_imports)]
                    use #krate::task::derive::{WithSchema as _, WithoutSchema as _};
                    let fields = #fields;
                    let output = (&#krate::task::derive::Probe::<#output>::new()).schema();
                    let mut options = <#krate::task::Options as ::core::default::Default>::default();
                    #options
                    #krate::task::Definition {
                        name: #krate::TaskName::known(#name),
                        doc: ::std::string::String::from(#doc),
                        fields,
                        options,
                        output,
                    }
                })
            }
        }
    }
}

fn write_fields(krate: &Path, fields: &Fields) -> TokenStream {
    match fields {
        Fields::Any => quote!(#krate::task::Fields::Any),
        Fields::Named(fields) => {
            let fields = fields.iter().map(|field| write_field(krate, field));
            quote!(#krate::task::Fields::Named(::std::vec![#(#fields),*]))
        }
    }
}

fn write_field(krate: &Path, field: &Field) -> TokenStream {
    let Field { name, aliases, presence, doc, schema } = field;
    let presence = match presence {
        Presence::Required => quote!(#krate::task::Presence::Required),
        Presence::Optional => quote!(#krate::task::Presence::Optional),
    };
    let schema = if let Some(ty) = schema {
        quote!((&#krate::task::derive::Probe::<#ty>::new()).schema())
    } else {
        quote!(#krate::task::derive::any_schema())
    };
    quote! {
        #krate::task::Field { name: #name, aliases: &[#(#aliases),*], presence: #presence, doc: #doc, schema: #schema }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The texts of all problems.
    fn refused(input: &DeriveInput) -> Vec<String> {
        task(input).expect_err("it is refused").into_iter().map(|problem| problem.to_string()).collect()
    }

    fn accepted(input: &DeriveInput) -> String {
        task(input).expect("it is accepted").to_string()
    }

    #[test]
    fn what_is_not_a_struct_with_names_is_refused_with_what_to_write() {
        for (input, message) in [
            (
                parse_quote!(
                    enum Mail {
                        A,
                        B,
                    }
                ),
                "a task is a struct: write one struct for each variant, or a struct with a field of this type",
            ),
            (parse_quote!(union Mail { a: u8 }), "a task is a struct with named fields: a union cannot be serialised"),
            (
                parse_quote!(
                    struct Mail(String);
                ),
                "arguments have names: write `struct Mail { field: Type }`, or `struct Mail;` for no arguments",
            ),
            (
                parse_quote!(
                    struct Mail<T> {
                        to: T,
                    }
                ),
                "a task is one type with one name: write a struct without parameters for each kind of task",
            ),
            (
                parse_quote!(
                    struct Mail<'a> {
                        to: &'a str,
                    }
                ),
                "a task is one type with one name: write a struct without parameters for each kind of task",
            ),
        ] {
            assert_eq!(refused(&input), [message]);
        }
    }

    #[test]
    fn values_out_of_their_range_are_refused() {
        let name = "invalid task name: 1 to 255 visible ASCII characters without spaces";
        let queue = "invalid queue name: 1 to 255 visible ASCII characters without spaces";
        let too_long = "n".repeat(256);
        let cases: Vec<(DeriveInput, &str)> = vec![
            (
                parse_quote!(
                    #[task(name = "")]
                    struct Mail;
                ),
                name,
            ),
            (
                parse_quote!(
                    #[task(name = "send mail")]
                    struct Mail;
                ),
                name,
            ),
            (
                parse_quote!(
                    #[task(name = #too_long)]
                    struct Mail;
                ),
                name,
            ),
            (
                parse_quote!(
                    #[task(queue = "höch")]
                    struct Mail;
                ),
                queue,
            ),
            (
                parse_quote!(
                    #[task(priority = 10)]
                    struct Mail;
                ),
                "it is a whole number from 0 (last) to 9 (first)",
            ),
            (
                parse_quote!(
                    #[task(priority = -1)]
                    struct Mail;
                ),
                "it is a whole number from 0 (last) to 9 (first)",
            ),
            (
                parse_quote!(
                    #[task(priority = "7")]
                    struct Mail;
                ),
                "write it as `priority = 7`",
            ),
            (
                parse_quote!(
                    #[task(retries = 10_000)]
                    struct Mail;
                ),
                "it is a whole number from 0 to 9,999",
            ),
            (
                parse_quote!(
                    #[task(retries)]
                    struct Mail;
                ),
                "write it as `retries = 3`",
            ),
            (
                parse_quote!(
                    #[task(jitter = 1.5)]
                    struct Mail;
                ),
                "it is a number from 0.0 (none) to 1.0 (from zero to twice the wait)",
            ),
            (
                parse_quote!(
                    #[task(jitter = "20%")]
                    struct Mail;
                ),
                "write it as `jitter = 0.2`",
            ),
            (
                parse_quote!(
                    #[task(rate = 100)]
                    struct Mail;
                ),
                "write it as `rate = \"100/m burst 10\"`",
            ),
            (
                parse_quote!(
                    #[task(concurrency = 0)]
                    struct Mail;
                ),
                "it is a whole number from 1",
            ),
            (
                parse_quote!(
                    #[task(key_concurrency = "two")]
                    struct Mail;
                ),
                "write it as `key_concurrency = 2`",
            ),
            (
                parse_quote!(
                    #[task(hard_limit = 300)]
                    struct Mail;
                ),
                "write it as `hard_limit = \"5m\"`",
            ),
            (
                parse_quote!(
                    #[task(never_retry = "declined")]
                    struct Mail;
                ),
                "write it as `never_retry(\"declined\", \"not_found\")`",
            ),
            (
                parse_quote!(
                    #[task(only_retry())]
                    struct Mail;
                ),
                "write it as `only_retry(\"timeout\", \"throttled\")`",
            ),
            (
                parse_quote!(
                    #[task(only_retry(""))]
                    struct Mail;
                ),
                "an error class is 1 to 120 bytes long",
            ),
        ];
        for (input, message) in cases {
            assert_eq!(refused(&input), [message]);
        }
    }

    #[test]
    fn a_name_at_its_limit_is_accepted() {
        let longest = "n".repeat(255);
        accepted(&parse_quote!(
            #[task(name = #longest, queue = #longest)]
            struct Mail;
        ));
    }

    #[test]
    fn a_key_that_is_unknown_or_given_twice_is_refused_by_name() {
        assert_eq!(
            refused(&parse_quote!(
                #[task(prioritty = 7)]
                struct Mail;
            )),
            ["unknown key `prioritty` (did you mean `priority`?)"]
        );
        assert_eq!(
            refused(&parse_quote!(
                #[task(timezone = "UTC")]
                struct Mail;
            )),
            ["unknown key `timezone`; the keys are name, queue, priority, retries, backoff, jitter, age_max, \
              never_retry, only_retry, soft_limit, hard_limit, expires_after, result_ttl, rate, concurrency, key_rate, \
              key_concurrency, output, input, any, crate"]
        );
        assert_eq!(
            refused(&parse_quote!(
                #[task(queue = "a")]
                #[task(queue = "b")]
                struct Mail;
            )),
            ["`queue` is given twice"]
        );
    }

    #[test]
    fn all_problems_are_reported_together() {
        let input = parse_quote! {
            #[task(priority = 12)]
            #[task(retires = 3)]
            struct Mail { #[task(input)] to: String, #[serde(skip_deserializing)] sent: u8 }
        };
        assert_eq!(
            refused(&input),
            [
                "it is a whole number from 0 (last) to 9 (first)",
                "unknown key `retires` (did you mean `retries`?)",
                "`#[task(..)]` belongs above the struct; a field takes serde's attributes",
                "`skip_deserializing` alone: producers would write an argument that the task does not take; use `skip`",
            ]
        );
    }

    #[test]
    fn an_input_that_is_no_argument_is_refused() {
        let input = parse_quote! {
            #[task(input = "rows")]
            #[serde(rename_all = "camelCase")]
            struct Count { rows_read: u32, #[serde(skip)] rows: u32 }
        };
        assert_eq!(refused(&input), ["there is no argument `rows`; the task takes rowsRead"]);
        let input = parse_quote!(
            #[task(input = "rows")]
            struct Count;
        );
        assert_eq!(refused(&input), ["there is no argument `rows`; the task takes no arguments"]);
        accepted(&parse_quote!(
            #[task(input = "rows", any)]
            struct Count {
                all: u8,
            }
        ));
    }

    #[test]
    fn arguments_that_are_written_and_read_by_different_names_are_refused() {
        let message = "producers would write `to`, the task reads `recipient`: use one name for both, or add \
                       `#[serde(alias = \"to\")]`";
        assert_eq!(
            refused(&parse_quote!(
                struct Mail {
                    #[serde(rename(deserialize = "recipient"))]
                    to: String,
                }
            )),
            [message]
        );
        accepted(&parse_quote!(
            struct Mail {
                #[serde(rename(deserialize = "recipient"), alias = "to")]
                to: String,
            }
        ));
        accepted(&parse_quote!(
            struct Mail {
                #[serde(rename(deserialize = "recipient"), skip_serializing)]
                to: String,
            }
        ));
    }

    #[test]
    fn a_struct_that_serde_reads_as_something_else_takes_any_arguments_or_is_refused() {
        assert_eq!(
            refused(&parse_quote!(
                #[serde(try_from = "Raw")]
                struct Mail {
                    to: String,
                }
            )),
            [
                "`#[serde(try_from)]`: its arguments are not its fields; remove it, or accept anything with `#[task(any)]`"
            ]
        );
        let any = accepted(&parse_quote!(
            #[serde(try_from = "Raw")]
            #[task(any)]
            struct Mail {
                to: String,
            }
        ));
        assert!(any.contains("Fields :: Any"), "{any}");
    }

    #[test]
    fn a_task_is_named_after_its_type() {
        for (ident, name) in [
            ("SendVerificationEmail", "send_verification_email"),
            ("HTTPFetch", "http_fetch"),
            ("FetchHTTP", "fetch_http"),
            ("Send2FACode", "send2_fa_code"),
            ("A", "a"),
            ("snake_already", "snake_already"),
        ] {
            assert_eq!(snake_case(ident), name);
        }
        assert_eq!(
            refused(&parse_quote!(
                struct Größe;
            )),
            ["invalid task name: 1 to 255 visible ASCII characters without spaces; give it one with \
              `#[task(name = \"..\")]`"]
        );
    }
}
