//! XML as XMPP uses it: elements in memory, and writing them.
//!
//! Only what stanzas need: elements, attributes, text. Reading is in `reader`.

use std::sync::Arc;

/// One element with all that is in it. Prefixes are resolved: names are compared by namespace and local name only.
#[derive(Clone, Debug, PartialEq)]
pub struct Element {
    pub(crate) ns: Arc<str>,
    pub(crate) name: Box<str>,
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) nodes: Vec<Node>,
}

/// Attributes without a prefix have no namespace; `xml:lang` keeps its name as written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attribute {
    pub ns: Option<Arc<str>>,
    pub name: Box<str>,
    pub value: Box<str>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node {
    Element(Element),
    Text(String),
}

impl Element {
    pub fn ns(&self) -> &str {
        &self.ns
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn is(&self, ns: &str, name: &str) -> bool {
        *self.name == *name && *self.ns == *ns
    }

    /// The value of an attribute without a namespace.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        let found = self.attributes.iter().find(|a| a.ns.is_none() && *a.name == *name);
        found.map(|a| &*a.value)
    }

    pub fn children(&self) -> impl Iterator<Item = &Element> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Element(child) => Some(child),
            Node::Text(_) => None,
        })
    }

    pub fn child(&self, ns: &str, name: &str) -> Option<&Element> {
        self.children().find(|child| child.is(ns, name))
    }

    /// The text directly inside, in one piece.
    pub fn text(&self) -> String {
        let texts = self.nodes.iter().filter_map(|node| match node {
            Node::Text(text) => Some(text.as_str()),
            Node::Element(_) => None,
        });
        texts.collect()
    }

    /// The text of a child, when it is there.
    pub fn child_text(&self, ns: &str, name: &str) -> Option<String> {
        self.child(ns, name).map(Element::text)
    }

    /// Replaces or adds an attribute without a namespace.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.attributes.retain(|a| a.ns.is_some() || *a.name != *name);
        self.attributes.push(Attribute { ns: None, name: name.into(), value: value.into() });
    }

    /// Appends the element as it would stand inside of one whose default namespace is `outer`. The depth was bounded when it
    /// was read, so this may recurse.
    pub(crate) fn write(&self, outer: &str, out: &mut Vec<u8>) {
        raw(out, "<");
        raw(out, &self.name);
        if *self.ns != *outer {
            attribute(out, "xmlns", &self.ns);
        }
        for (i, a) in self.attributes.iter().enumerate() {
            match &a.ns {
                None => attribute(out, &a.name, &a.value),
                Some(ns) => {
                    attribute(out, &format!("xmlns:a{i}"), ns);
                    attribute(out, &format!("a{i}:{}", a.name), &a.value);
                }
            }
        }
        if self.nodes.is_empty() {
            return raw(out, "/>");
        }
        raw(out, ">");
        for node in &self.nodes {
            match node {
                Node::Element(child) => child.write(&self.ns, out),
                Node::Text(text) => escaped(out, text),
            }
        }
        raw(out, "</");
        raw(out, &self.name);
        raw(out, ">");
    }
}

/// Appends what is XML already.
pub(crate) fn raw(out: &mut Vec<u8>, xml: &str) {
    out.extend_from_slice(xml.as_bytes());
}

/// Appends ` name="value"`.
pub(crate) fn attribute(out: &mut Vec<u8>, name: &str, value: &str) {
    raw(out, " ");
    raw(out, name);
    raw(out, "=\"");
    escaped(out, value);
    raw(out, "\"");
}

/// Appends `<name>text</name>`.
pub(crate) fn text_element(out: &mut Vec<u8>, name: &str, text: &str) {
    raw(out, "<");
    raw(out, name);
    raw(out, ">");
    escaped(out, text);
    raw(out, "</");
    raw(out, name);
    raw(out, ">");
}

/// Appends text for element content or a quoted value. Characters that XML cannot say become U+FFFD.
pub(crate) fn escaped(out: &mut Vec<u8>, text: &str) {
    let mut plain_from = 0;
    for (at, c) in text.char_indices() {
        let instead = match c {
            '&' => "&amp;",
            '<' => "&lt;",
            '>' => "&gt;",
            '"' => "&quot;",
            '\'' => "&apos;",
            // A reader would make a line feed of it (XML §2.11).
            '\r' => "&#13;",
            c if !is_char(c) => "\u{FFFD}",
            _ => continue,
        };
        raw(out, &text[plain_from..at]);
        raw(out, instead);
        plain_from = at + c.len_utf8();
    }
    raw(out, &text[plain_from..]);
}

/// XML §2.2.
pub(crate) fn is_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..)
}
