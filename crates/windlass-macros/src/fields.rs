//! Reads the fields of a task as serde reads them: their names, and whether they may be left out.

use proc_macro2::{Span, TokenStream};
use syn::ext::IdentExt;
use syn::meta::ParseNestedMeta;
use syn::{
    Attribute, Data, DataStruct, DeriveInput, Error, Expr, GenericArgument, LitStr, PathArguments, Result, Token,
};
use syn::{Type, parenthesized, token};

use crate::attributes::{Attributes, Problems};
use crate::docs::doc;

/// The arguments that a task takes.
pub(crate) enum Fields {
    Named(Vec<Field>),
    Any,
}

/// One argument.
pub(crate) struct Field {
    /// The name that is read.
    pub(crate) name: String,
    pub(crate) aliases: Vec<String>,
    pub(crate) presence: Presence,
    pub(crate) doc: String,
    /// `None` when the text that travels is not what the type tells.
    pub(crate) schema: Option<Type>,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Presence {
    Required,
    Optional,
}

impl Fields {
    /// Reads the fields of a struct.
    ///
    /// # Errors
    /// When it is not a struct with named fields or none, and for fields that could not travel; all problems together.
    pub(crate) fn read(input: &DeriveInput, attributes: &Attributes) -> Result<Self> {
        let fields = struct_fields(input)?;
        let container = Container::read(&input.attrs)?;
        let mut problems = Problems::default();
        let mut kept = Vec::new();
        for field in fields {
            let at_field = field.attrs.iter().find(|attribute| attribute.path().is_ident("task"));
            problems.note(at_field.map_or(Ok(()), |attribute| {
                Err(Error::new_spanned(
                    attribute,
                    "`#[task(..)]` belongs above the struct; a field takes serde's attributes",
                ))
            }));
            kept.extend(problems.note(Serde::read(&field.attrs)).map(|serde| (field, serde)));
        }
        if attributes.any.is_some() {
            return problems.none_or(Self::Any);
        }
        if let Some((key, span)) = &container.reshaped {
            let advice = "its arguments are not its fields; remove it, or accept anything with `#[task(any)]`";
            problems.note::<()>(Err(Error::new(*span, format!("`#[serde({key})]`: {advice}"))));
        }
        if kept.iter().any(|(_, serde)| serde.flatten == Flatten::Into) {
            return problems.none_or(Self::Any);
        }
        let named = kept.into_iter().filter_map(|(field, serde)| problems.note(argument(field, serde, &container)));
        let named = named.flatten().collect();
        problems.none_or(Self::Named(named))
    }
}

fn struct_fields(input: &DeriveInput) -> Result<Vec<&syn::Field>> {
    let refused = |why: &str| Err(Error::new_spanned(&input.ident, why));
    if !input.generics.params.is_empty() {
        return refused("a task is one type with one name: write a struct without parameters for each kind of task");
    }
    match &input.data {
        Data::Struct(DataStruct { fields: syn::Fields::Named(fields), .. }) => Ok(fields.named.iter().collect()),
        Data::Struct(DataStruct { fields: syn::Fields::Unit, .. }) => Ok(Vec::new()),
        Data::Struct(DataStruct { fields: syn::Fields::Unnamed(_), .. }) => {
            let name = &input.ident;
            refused(&format!(
                "arguments have names: write `struct {name} {{ field: Type }}`, or `struct {name};` for no arguments"
            ))
        }
        Data::Enum(_) => {
            refused("a task is a struct: write one struct for each variant, or a struct with a field of this type")
        }
        Data::Union(_) => refused("a task is a struct with named fields: a union cannot be serialised"),
    }
}

/// The argument that a field is; `None` for a field that does not travel.
fn argument(field: &syn::Field, serde: Serde, container: &Container) -> Result<Option<Field>> {
    let Some(ident) = &field.ident else { return Ok(None) };
    match (serde.read, serde.written) {
        (Travels::No, Travels::No) => return Ok(None),
        (Travels::No, Travels::Yes) => {
            return Err(Error::new_spanned(
                ident,
                "`skip_deserializing` alone: producers would write an argument that the task does not take; use `skip`",
            ));
        }
        (Travels::Yes, Travels::Yes | Travels::No) => {}
    }
    let plain = ident.unraw().to_string();
    let read_name = serde.read_name.unwrap_or_else(|| container.read_case.apply(&plain));
    let written_name = serde.written_name.unwrap_or_else(|| container.written_case.apply(&plain));
    let understood = written_name == read_name || serde.aliases.contains(&written_name);
    if serde.written == Travels::Yes && !understood {
        return Err(Error::new_spanned(
            ident,
            format!(
                "producers would write `{written_name}`, the task reads `{read_name}`: use one name for both, or add \
                 `#[serde(alias = \"{written_name}\")]`"
            ),
        ));
    }
    let may_be_missing = serde.presence == Presence::Optional
        || container.presence == Presence::Optional
        || (serde.reader == Reader::OfTheType && is_option(&field.ty));
    Ok(Some(Field {
        name: read_name,
        aliases: serde.aliases,
        presence: if may_be_missing { Presence::Optional } else { Presence::Required },
        doc: doc(&field.attrs),
        schema: (serde.reader == Reader::OfTheType).then(|| field.ty.clone()),
    }))
}

/// Whether a type is written as `Option<..>`: what serde fills with `None` when it is missing.
fn is_option(ty: &Type) -> bool {
    match ty {
        Type::Path(path) => path.path.segments.last().is_some_and(|last| {
            last.ident == "Option"
                && matches!(&last.arguments, PathArguments::AngleBracketed(of)
                    if matches!(of.args.first(), Some(GenericArgument::Type(_))) && of.args.len() == 1)
        }),
        // A type that came through a `macro_rules!` variable.
        Type::Group(group) => is_option(&group.elem),
        Type::Paren(paren) => is_option(&paren.elem),
        _ => false,
    }
}

/// What serde's attributes of the struct say.
struct Container {
    read_case: Case,
    written_case: Case,
    presence: Presence,
    /// The attribute that makes serde read or write something else than the fields.
    reshaped: Option<(String, Span)>,
}

impl Container {
    fn read(attributes: &[Attribute]) -> Result<Self> {
        let mut container =
            Self { read_case: Case::Same, written_case: Case::Same, presence: Presence::Required, reshaped: None };
        each_serde_key(attributes, |key, meta| match key {
            "rename_all" => {
                let names = Names::read(meta)?;
                // A case that serde does not know is reported by serde.
                let case = |name: Option<String>| name.and_then(|name| Case::named(&name));
                container.read_case = case(names.read).unwrap_or(container.read_case);
                container.written_case = case(names.written).unwrap_or(container.written_case);
                Ok(())
            }
            "default" => {
                container.presence = Presence::Optional;
                pass_over(meta)
            }
            "transparent" | "tag" | "from" | "try_from" | "into" => {
                container.reshaped = Some((key.to_owned(), syn::spanned::Spanned::span(&meta.path)));
                pass_over(meta)
            }
            _ => pass_over(meta),
        })?;
        Ok(container)
    }
}

/// What serde's attributes of a field say.
struct Serde {
    read_name: Option<String>,
    written_name: Option<String>,
    aliases: Vec<String>,
    presence: Presence,
    read: Travels,
    written: Travels,
    flatten: Flatten,
    reader: Reader,
}

#[derive(Clone, Copy, PartialEq)]
enum Travels {
    Yes,
    No,
}

#[derive(PartialEq)]
enum Flatten {
    /// The field is one argument.
    No,
    /// The field takes the arguments that no other field takes.
    Into,
}

#[derive(PartialEq)]
enum Reader {
    /// `Deserialize` of the field's type.
    OfTheType,
    /// A function of its own.
    Function,
}

impl Serde {
    fn read(attributes: &[Attribute]) -> Result<Self> {
        let mut serde = Self {
            read_name: None,
            written_name: None,
            aliases: Vec::new(),
            presence: Presence::Required,
            read: Travels::Yes,
            written: Travels::Yes,
            flatten: Flatten::No,
            reader: Reader::OfTheType,
        };
        each_serde_key(attributes, |key, meta| {
            match key {
                "rename" => {
                    let names = Names::read(meta)?;
                    serde.read_name = names.read.or(serde.read_name.take());
                    serde.written_name = names.written.or(serde.written_name.take());
                    return Ok(());
                }
                "alias" => {
                    serde.aliases.push(meta.value()?.parse::<LitStr>()?.value());
                    return Ok(());
                }
                "default" => serde.presence = Presence::Optional,
                "skip" => (serde.read, serde.written) = (Travels::No, Travels::No),
                "skip_deserializing" => serde.read = Travels::No,
                "skip_serializing" => serde.written = Travels::No,
                "flatten" => serde.flatten = Flatten::Into,
                "with" | "deserialize_with" => serde.reader = Reader::Function,
                _ => {}
            }
            pass_over(meta)
        })?;
        Ok(serde)
    }
}

/// `= "both"`, or `(serialize = "written", deserialize = "read")`.
struct Names {
    read: Option<String>,
    written: Option<String>,
}

impl Names {
    fn read(meta: &ParseNestedMeta<'_>) -> Result<Self> {
        if meta.input.peek(Token![=]) {
            let name = meta.value()?.parse::<LitStr>()?.value();
            return Ok(Self { read: Some(name.clone()), written: Some(name) });
        }
        let mut names = Self { read: None, written: None };
        meta.parse_nested_meta(|side| {
            if side.path.is_ident("deserialize") {
                names.read = Some(side.value()?.parse::<LitStr>()?.value());
            } else if side.path.is_ident("serialize") {
                names.written = Some(side.value()?.parse::<LitStr>()?.value());
            } else {
                pass_over(&side)?;
            }
            Ok(())
        })?;
        Ok(names)
    }
}

fn each_serde_key(
    attributes: &[Attribute],
    mut read: impl FnMut(&str, &ParseNestedMeta<'_>) -> Result<()>,
) -> Result<()> {
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("serde")) {
        attribute.parse_nested_meta(|meta| {
            let key = meta.path.get_ident().map(ToString::to_string).unwrap_or_default();
            read(&key, &meta)
        })?;
    }
    Ok(())
}

/// Passes over the value of a key that means nothing here.
fn pass_over(meta: &ParseNestedMeta<'_>) -> Result<()> {
    if meta.input.peek(Token![=]) {
        meta.value()?.parse::<Expr>()?;
    } else if meta.input.peek(token::Paren) {
        let inside;
        parenthesized!(inside in meta.input);
        inside.parse::<TokenStream>()?;
    }
    Ok(())
}

/// How serde writes the name of a field that is written in snake case.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Case {
    Same,
    Upper,
    Pascal,
    Camel,
    Kebab,
    UpperKebab,
}

impl Case {
    fn named(name: &str) -> Option<Self> {
        match name {
            // Serde takes the name of a field as it is for both.
            "lowercase" | "snake_case" => Some(Self::Same),
            "UPPERCASE" | "SCREAMING_SNAKE_CASE" => Some(Self::Upper),
            "PascalCase" => Some(Self::Pascal),
            "camelCase" => Some(Self::Camel),
            "kebab-case" => Some(Self::Kebab),
            "SCREAMING-KEBAB-CASE" => Some(Self::UpperKebab),
            _ => None,
        }
    }

    fn apply(self, field: &str) -> String {
        match self {
            Self::Same => field.to_owned(),
            Self::Upper => field.to_ascii_uppercase(),
            Self::Kebab => field.replace('_', "-"),
            Self::UpperKebab => field.to_ascii_uppercase().replace('_', "-"),
            Self::Pascal => pascal(field),
            Self::Camel => {
                let pascal = pascal(field);
                let mut letters = pascal.chars();
                letters.next().map(|first| first.to_ascii_lowercase()).into_iter().chain(letters).collect()
            }
        }
    }
}

fn pascal(field: &str) -> String {
    let mut starts = true;
    let mut name = String::new();
    for letter in field.chars() {
        if letter == '_' {
            starts = true;
        } else {
            name.push(if starts { letter.to_ascii_uppercase() } else { letter });
            starts = false;
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_of_serde_is_known() {
        for (case, name) in [
            ("lowercase", "user_id2"),
            ("UPPERCASE", "USER_ID2"),
            ("PascalCase", "UserId2"),
            ("camelCase", "userId2"),
            ("snake_case", "user_id2"),
            ("SCREAMING_SNAKE_CASE", "USER_ID2"),
            ("kebab-case", "user-id2"),
            ("SCREAMING-KEBAB-CASE", "USER-ID2"),
        ] {
            assert_eq!(Case::named(case).unwrap().apply("user_id2"), name, "{case}");
        }
        assert_eq!(Case::named("Title Case"), None);
    }

    #[test]
    fn an_option_is_known_by_how_it_is_written() {
        let is_option = |text: &str| is_option(&syn::parse_str(text).unwrap());
        assert!(is_option("Option<u8>") && is_option("std::option::Option<Vec<u8>>") && is_option("(Option<u8>)"));
        assert!(!is_option("Vec<Option<u8>>") && !is_option("Option") && !is_option("[Option<u8>; 2]"));
    }
}
