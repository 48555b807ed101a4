//! Failures of ours as exceptions of Python: of which class, in which module.

use windlass_core::Failure;

/// The module of our own exceptions. No Python process has imported it, so clients make a class of that name.
pub const MODULE: &str = "windlass";

/// The exceptions that every Python process knows and that are made of one text. Those that end a process or a coroutine
/// (`SystemExit`, `StopIteration`) are no answer to somebody who waits for a result.
const BUILTINS: [&str; 56] = [
    "ArithmeticError",
    "AssertionError",
    "AttributeError",
    "BlockingIOError",
    "BrokenPipeError",
    "BufferError",
    "BytesWarning",
    "ChildProcessError",
    "ConnectionAbortedError",
    "ConnectionError",
    "ConnectionRefusedError",
    "ConnectionResetError",
    "DeprecationWarning",
    "EOFError",
    "EncodingWarning",
    "EnvironmentError",
    "Exception",
    "FileExistsError",
    "FileNotFoundError",
    "FloatingPointError",
    "FutureWarning",
    "IOError",
    "ImportError",
    "ImportWarning",
    "IndentationError",
    "IndexError",
    "InterruptedError",
    "IsADirectoryError",
    "KeyError",
    "LookupError",
    "MemoryError",
    "ModuleNotFoundError",
    "NameError",
    "NotADirectoryError",
    "NotImplementedError",
    "OSError",
    "OverflowError",
    "PendingDeprecationWarning",
    "PermissionError",
    "ProcessLookupError",
    "RecursionError",
    "ReferenceError",
    "ResourceWarning",
    "RuntimeError",
    "RuntimeWarning",
    "SyntaxError",
    "SyntaxWarning",
    "SystemError",
    "TabError",
    "TimeoutError",
    "TypeError",
    "UnboundLocalError",
    "UserWarning",
    "ValueError",
    "Warning",
    "ZeroDivisionError",
];

/// A class of Python.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// The module.
    pub module: String,
    /// Its name there.
    pub name: String,
}

impl Class {
    /// The class of the exception that a failure is for Python.
    ///
    /// | class of the failure | Python |
    /// |---|---|
    /// | an exception that is built in: `ValueError` | that one, in `builtins` |
    /// | `module.Class`, the class with a capital: `payments.errors.Declined` | that one; clients import nothing, and make a class of the name when the module is not there |
    /// | anything else: `http_503`, `reqwest::Error` | a name in the module [`MODULE`] |
    ///
    /// ```
    /// use windlass_core::Failure;
    /// use windlass_wire::python::Class;
    ///
    /// let class = |class: &str| Class::of(&Failure::new(class, "no stock"));
    /// assert_eq!((class("KeyError").module.as_str(), class("KeyError").name.as_str()), ("builtins", "KeyError"));
    /// assert_eq!(class("shop.errors.SoldOut").module, "shop.errors");
    /// assert_eq!(class("http_503").module, "windlass");
    /// ```
    pub fn of(failure: &Failure) -> Self {
        let class = failure.class.as_str();
        if is_builtin(class) {
            return Self::new("builtins", class);
        }
        match class.rsplit_once('.') {
            Some((module, name)) if is_class_of(module, name) => Self::new(module, name),
            Some(_) | None => Self::new(MODULE, &plain_name(class)),
        }
    }

    fn new(module: &str, name: &str) -> Self {
        Self { module: module.to_owned(), name: name.to_owned() }
    }
}

fn is_builtin(name: &str) -> bool {
    BUILTINS.binary_search(&name).is_ok()
}

/// Whether these can be a module and a class. Only a name with a capital is taken for a class: `http.timeout` is ours, and
/// nothing that is written here ever names a function such as `os.system`.
fn is_class_of(module: &str, name: &str) -> bool {
    let is_class = name.starts_with(|char: char| char.is_ascii_uppercase()) && is_identifier(name);
    is_class && module.split('.').all(is_identifier) && (module != "builtins" || is_builtin(name))
}

fn is_identifier(text: &str) -> bool {
    let begins_well = text.starts_with(|char: char| char.is_ascii_alphabetic() || char == '_');
    begins_well && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn plain_name(class: &str) -> String {
    let name: String = class.chars().map(|char| if char.is_ascii_alphanumeric() { char } else { '_' }).collect();
    if name.starts_with(|char: char| char.is_ascii_alphabetic()) { name } else { format!("Error_{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_of_a_failure_is_the_class_that_python_knows() {
        for (class, module, name) in [
            ("ValueError", "builtins", "ValueError"),
            ("builtins.ValueError", "builtins", "ValueError"),
            ("TimeoutError", "builtins", "TimeoutError"),
            ("payments.Declined", "payments", "Declined"),
            ("a.b_c.D2", "a.b_c", "D2"),
            ("SystemExit", "windlass", "SystemExit"),
            ("builtins.SystemExit", "windlass", "builtins_SystemExit"),
            ("builtins.exec", "windlass", "builtins_exec"),
            ("os.system", "windlass", "os_system"),
            ("a..B", "windlass", "a__B"),
            (".B", "windlass", "Error__B"),
            ("2a.B", "windlass", "Error_2a_B"),
            ("a.B!", "windlass", "a_B_"),
            ("reqwest::Error", "windlass", "reqwest__Error"),
            ("5xx", "windlass", "Error_5xx"),
            ("", "windlass", "Error_"),
        ] {
            let expected = Class { module: module.to_owned(), name: name.to_owned() };
            assert_eq!(Class::of(&Failure::new(class, "text")), expected, "{class}");
        }
    }

    #[test]
    fn the_names_of_what_is_built_in_are_in_order() {
        assert!(BUILTINS.is_sorted(), "they are searched by halves");
    }
}
