//! Tokens to modules: declarations, scopes, labels; instructions go on to the decoder.

use std::collections::HashMap;

use super::cfg;
use super::decode::{self, Operand, RegRef, Statement};
use super::inst::{Inst, Op};
use super::lexer::{self, Spanned, Token};
use super::types::{Special, Ty, window};
use super::{Kernel, Module, Param, ParseError};

type Result<T> = std::result::Result<T, ParseError>;

/// Parses a module.
pub(crate) fn module(source: &str) -> Result<Module> {
    let tokens = lexer::tokens(source)?;
    let mut parser = Parser {
        tokens: &tokens,
        at: 0,
        globals: HashMap::new(),
        constants: Vec::new(),
        shared: Vec::new(),
        target: None,
    };
    let mut kernels = HashMap::new();
    while parser.at < tokens.len() {
        if let Some(kernel) = parser.item()? {
            kernels.insert(kernel.name.clone(), kernel);
        }
    }
    Ok(Module { target: parser.target, kernels, constants: parser.constants })
}

/// A variable in shared memory; `size` is `None` for the dynamic part.
#[derive(Clone)]
struct SharedVariable {
    name: String,
    align: usize,
    size: Option<usize>,
}

struct Variable {
    name: String,
    align: usize,
    size: Option<usize>,
    bytes: Vec<u8>,
}

struct Parser<'a> {
    tokens: &'a [Spanned],
    at: usize,
    /// Addresses of the module's constants.
    globals: HashMap<String, u64>,
    constants: Vec<u8>,
    shared: Vec<SharedVariable>,
    target: Option<u32>,
}

#[derive(Default)]
struct Scope {
    id: usize,
    names: HashMap<String, RegRef>,
    /// `%r<85>`: prefix, first slot, count, type.
    ranges: Vec<(String, u32, u32, Ty)>,
}

/// A kernel's body while it is read.
#[derive(Default)]
struct Body {
    scopes: Vec<Scope>,
    next_scope: usize,
    registers: u32,
    predicates: u32,
    labels: HashMap<(usize, String), usize>,
    tables: HashMap<String, Vec<String>>,
    statements: Vec<(Statement, Vec<usize>)>,
    shared: Vec<SharedVariable>,
    local: HashMap<String, u64>,
    local_bytes: usize,
}

impl Parser<'_> {
    fn line(&self) -> u32 {
        self.tokens.get(self.at.min(self.tokens.len().saturating_sub(1))).map_or(1, |t| t.line)
    }

    fn error<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(ParseError::new(self.line(), message))
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|t| &t.token)
    }

    fn next(&mut self) -> Result<Token> {
        let Some(token) = self.peek().cloned() else { return self.error("the text ends too early") };
        self.at += 1;
        Ok(token)
    }

    fn eat(&mut self, c: char) -> bool {
        let found = self.peek() == Some(&Token::Punct(c));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, c: char) -> Result<()> {
        if self.eat(c) {
            return Ok(());
        }
        let found = self.peek().cloned();
        self.error(format!("expected `{c}`, found {found:?}"))
    }

    fn word(&mut self) -> Result<String> {
        match self.next()? {
            Token::Word(word) => Ok(word),
            other => {
                self.at -= 1;
                self.error(format!("expected a word, found {other:?}"))
            }
        }
    }

    fn int(&mut self) -> Result<u64> {
        match self.next()? {
            Token::Int(n) => Ok(n),
            other => {
                self.at -= 1;
                self.error(format!("expected an integer, found {other:?}"))
            }
        }
    }

    fn skip_line(&mut self) {
        let line = self.line();
        while self.tokens.get(self.at).is_some_and(|t| t.line == line) {
            self.at += 1;
        }
    }

    fn skip_block(&mut self) -> Result<()> {
        let mut depth = 0;
        loop {
            match self.next()? {
                Token::Punct('{') => depth += 1,
                Token::Punct('}') => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    fn item(&mut self) -> Result<Option<Kernel>> {
        let word = self.word()?;
        match word.as_str() {
            ".target" => {
                let target = self.word()?;
                let digits = target.trim_start_matches("sm_").trim_end_matches(char::is_alphabetic);
                self.target = digits.parse().ok();
                self.skip_line();
            }
            ".version" | ".address_size" | ".file" | ".pragma" => self.skip_line(),
            ".section" => {
                self.next()?;
                self.skip_block()?;
            }
            ".visible" | ".extern" | ".weak" | ".common" => {}
            ".entry" => return self.entry().map(Some),
            ".func" => {
                while !matches!(self.peek(), Some(Token::Punct('{' | ';'))) {
                    self.next()?;
                }
                if !self.eat(';') {
                    self.skip_block()?;
                }
            }
            ".const" | ".global" => {
                let variable = self.variable()?;
                let start = self.constants.len().next_multiple_of(variable.align);
                self.constants.resize(start, 0);
                self.constants.extend(&variable.bytes);
                self.constants.resize(start + variable.size.unwrap_or(0), 0);
                self.globals.insert(variable.name, window::CONST + start as u64);
            }
            ".shared" => {
                let Variable { name, align, size, .. } = self.variable()?;
                self.shared.push(SharedVariable { name, align, size });
            }
            _ => {
                self.at -= 1;
                return self.error(format!("`{word}` at the level of the module"));
            }
        }
        Ok(None)
    }

    /// `.align 4 .b8 name[16] = {…};`, after its state space.
    fn variable(&mut self) -> Result<Variable> {
        let (mut align, mut ty) = (None, None);
        let name = loop {
            let word = self.word()?;
            match word.strip_prefix('.') {
                Some("align") => align = Some(self.int()? as usize),
                Some(name) => match Ty::by_name(name) {
                    Some(found) => ty = Some(found),
                    None if name.starts_with('v') || name.starts_with("attribute") => {
                        return self.error(format!("a variable of kind .{name} is not supported"));
                    }
                    None => {}
                },
                None => break word,
            }
        };
        let Some(ty) = ty else { return self.error(format!("variable {name} without a type")) };
        let (mut count, mut open) = (1, false);
        while self.eat('[') {
            if self.eat(']') {
                open = true;
            } else {
                count *= self.int()? as usize;
                self.expect(']')?;
            }
        }
        let mut bytes = Vec::new();
        if self.eat('=') {
            let mut depth = 0;
            loop {
                match self.next()? {
                    Token::Punct('{') => depth += 1,
                    Token::Punct('}') => depth -= 1,
                    Token::Punct(',') => {}
                    Token::Punct('-') => {
                        let n = self.int()?.wrapping_neg();
                        bytes.extend(&n.to_le_bytes()[..ty.bytes()]);
                    }
                    Token::Int(n) => bytes.extend(&n.to_le_bytes()[..ty.bytes()]),
                    Token::F32(n) => bytes.extend(n.to_le_bytes()),
                    Token::F64(n) => bytes.extend(n.to_le_bytes()),
                    other => return self.error(format!("{other:?} as an initial value is not supported")),
                }
                if depth == 0 {
                    break;
                }
            }
        }
        self.expect(';')?;
        let size = (!open).then_some(count * ty.bytes());
        Ok(Variable { name, align: align.unwrap_or(ty.bytes()), size, bytes })
    }

    fn entry(&mut self) -> Result<Kernel> {
        let name = self.word()?;
        let (mut params, mut names, mut param_bytes) = (Vec::new(), HashMap::new(), 0usize);
        if self.eat('(') {
            while !self.eat(')') {
                let (mut align, mut ty) = (None, Ty::B(8));
                let param = loop {
                    let word = self.word()?;
                    match word.strip_prefix('.') {
                        Some("align") => align = Some(self.int()? as usize),
                        Some(name) => ty = Ty::by_name(name).unwrap_or(ty),
                        None => break word,
                    }
                };
                let mut size = ty.bytes();
                if self.eat('[') {
                    size *= self.int()? as usize;
                    self.expect(']')?;
                }
                let offset = param_bytes.next_multiple_of(align.unwrap_or(ty.bytes()).max(1));
                names.insert(param, offset as u64);
                params.push(Param { offset, size });
                param_bytes = offset + size;
                self.eat(',');
            }
        }
        // .maxntid and its kin.
        while !self.eat('{') {
            self.next()?;
        }
        let mut body = Body::default();
        body.open();
        while !body.scopes.is_empty() {
            self.statement(&mut body)?;
        }
        self.finish(name, body, params, names, param_bytes)
    }

    fn statement(&mut self, body: &mut Body) -> Result<()> {
        let line = self.line();
        if self.eat('{') {
            body.open();
            return Ok(());
        }
        if self.eat('}') {
            body.scopes.pop();
            return Ok(());
        }
        if self.eat(';') {
            return Ok(());
        }
        let guard = if self.eat('@') {
            let negated = self.eat('!');
            let word = self.word()?;
            match body.register(&word) {
                Some(RegRef::Pred(p)) => Some((p, negated)),
                _ => return self.error(format!("the guard {word} is no predicate")),
            }
        } else {
            None
        };
        let word = self.word()?;
        if guard.is_none() && self.eat(':') {
            if self.peek() == Some(&Token::Word(".branchtargets".to_owned())) {
                self.next()?;
                let mut targets = vec![self.word()?];
                while self.eat(',') {
                    targets.push(self.word()?);
                }
                self.expect(';')?;
                body.tables.insert(word, targets);
            } else {
                let scope = body.scopes.last().map_or(0, |s| s.id);
                body.labels.insert((scope, word), body.statements.len());
            }
            return Ok(());
        }
        match word.as_str() {
            ".reg" => self.registers(body),
            ".shared" => {
                let Variable { name, align, size, .. } = self.variable()?;
                body.shared.push(SharedVariable { name, align, size });
                Ok(())
            }
            ".local" => {
                let variable = self.variable()?;
                let start = body.local_bytes.next_multiple_of(variable.align);
                body.local_bytes = start + variable.size.unwrap_or(0);
                body.local.insert(variable.name, start as u64);
                Ok(())
            }
            ".loc" | ".pragma" | ".file" => {
                self.at -= 1;
                self.skip_line();
                Ok(())
            }
            _ if word.starts_with('.') => self.error(format!("directive {word} is not supported")),
            _ => {
                let mut operands = Vec::new();
                while !self.eat(';') {
                    operands.push(self.operand(body)?);
                    self.eat(',');
                }
                let path = body.scopes.iter().rev().map(|s| s.id).collect();
                body.statements.push((Statement { line, guard, opcode: word, operands }, path));
                Ok(())
            }
        }
    }

    /// `.reg .b32 %r<85>, other;`
    fn registers(&mut self, body: &mut Body) -> Result<()> {
        let ty = self.word()?;
        let Some(ty) = ty.strip_prefix('.').and_then(Ty::by_name) else {
            return self.error(format!("registers of type {ty} are not supported"));
        };
        loop {
            let name = self.word()?;
            if self.eat('<') {
                let count = self.int()? as u32;
                self.expect('>')?;
                let first = body.allocate(count, ty);
                if let Some(scope) = body.scopes.last_mut() {
                    scope.ranges.push((name, first, count, ty));
                }
            } else {
                let slot = body.allocate(1, ty);
                if let Some(scope) = body.scopes.last_mut() {
                    scope.names.insert(name, RegRef::of(slot, ty));
                }
            }
            if !self.eat(',') {
                return self.expect(';');
            }
        }
    }

    fn operand(&mut self, body: &Body) -> Result<Operand> {
        if self.eat('{') {
            let mut parts = Vec::new();
            while !self.eat('}') {
                parts.push(self.operand(body)?);
                self.eat(',');
            }
            return Ok(Operand::Vector(parts));
        }
        if self.eat('[') {
            let base = Box::new(self.operand(body)?);
            let mut offset = 0i64;
            while !self.eat(']') {
                self.eat('+');
                let negative = self.eat('-');
                let n = match self.next()? {
                    Token::Int(n) => n as i64,
                    other => return self.error(format!("{other:?} in an address")),
                };
                offset += if negative { -n } else { n };
            }
            return Ok(Operand::Address(base, offset));
        }
        if self.eat('!') {
            let word = self.word()?;
            return match body.register(&word) {
                Some(RegRef::Pred(p)) => Ok(Operand::NotPred(p)),
                _ => self.error(format!("!{word} is no predicate")),
            };
        }
        if self.eat('-') {
            return match self.next()? {
                Token::Int(n) => Ok(Operand::Int(n.wrapping_neg())),
                Token::F64(x) => Ok(Operand::F64(x ^ 1 << 63)),
                other => self.error(format!("-{other:?} is no operand")),
            };
        }
        let operand = match self.next()? {
            Token::Int(n) => Operand::Int(n),
            Token::F32(n) => Operand::F32(n),
            Token::F64(n) => Operand::F64(n),
            Token::Word(word) if word == "_" => Operand::Sink,
            Token::Word(word) => match body.register(&word) {
                Some(register) => Operand::Reg(register),
                None => match Special::by_name(&word) {
                    Ok(Some(special)) => Operand::Special(special),
                    Ok(None) => Operand::Symbol(word),
                    Err(message) => return self.error(message),
                },
            },
            other => {
                self.at -= 1;
                return self.error(format!("{other:?} is no operand"));
            }
        };
        if self.eat('|') {
            let second = self.operand(body)?;
            return Ok(Operand::Pair(Box::new(operand), Box::new(second)));
        }
        Ok(operand)
    }

    /// Lays shared memory out, decodes the statements and resolves the labels.
    fn finish(
        &self,
        name: String,
        body: Body,
        params: Vec<Param>,
        param_names: HashMap<String, u64>,
        param_bytes: usize,
    ) -> Result<Kernel> {
        let mut symbols = self.globals.clone();
        symbols.extend(param_names);
        symbols.extend(body.local.clone());
        let used = |v: &&SharedVariable| body.statements.iter().any(|(s, _)| s.names(&v.name));
        let shared: Vec<&SharedVariable> = self.shared.iter().filter(used).chain(&body.shared).collect();
        let mut static_shared = 0usize;
        for v in &shared {
            if let Some(size) = v.size {
                let start = static_shared.next_multiple_of(v.align);
                symbols.insert(v.name.clone(), start as u64);
                static_shared = start + size;
            }
        }
        let dynamic = || shared.iter().filter(|v| v.size.is_none());
        let dynamic_shared = static_shared.next_multiple_of(dynamic().map(|v| v.align).max().unwrap_or(16));
        symbols.extend(dynamic().map(|v| (v.name.clone(), dynamic_shared as u64)));

        let mut insts: Vec<Inst> = Vec::with_capacity(body.statements.len());
        for (statement, path) in &body.statements {
            let find = |label: &str| {
                let found = path.iter().find_map(|&scope| body.labels.get(&(scope, label.to_owned())));
                found.copied().ok_or_else(|| ParseError::new(statement.line, format!("no label {label}")))
            };
            let op = match statement.opcode.split('.').next().unwrap_or("") {
                "bra" => Op::Branch { target: find(statement.symbol(0)?)? },
                "brx" => {
                    let table = statement.symbol(1)?;
                    let Some(targets) = body.tables.get(table) else {
                        return Err(ParseError::new(statement.line, format!("no branch targets {table}")));
                    };
                    let targets = targets.iter().map(|t| find(t)).collect::<Result<_>>()?;
                    Op::BranchIndexed { index: statement.src(0, Ty::U(32), &symbols)?, targets }
                }
                _ => decode::decode(statement, &symbols)?,
            };
            let (guard, line, opcode) = (statement.guard, statement.line, statement.opcode.clone());
            insts.push(Inst { op, guard, line, opcode });
        }
        let reconverge = cfg::reconvergence(&insts);
        Ok(Kernel {
            name,
            params,
            param_bytes,
            insts,
            reconverge,
            registers: body.registers as usize,
            predicates: body.predicates as usize,
            static_shared,
            dynamic_shared,
            local_bytes: body.local_bytes,
        })
    }
}

impl Body {
    fn open(&mut self) {
        self.scopes.push(Scope { id: self.next_scope, ..Scope::default() });
        self.next_scope += 1;
    }

    fn allocate(&mut self, count: u32, ty: Ty) -> u32 {
        if ty == Ty::Pred {
            self.predicates += count;
            return self.predicates - count;
        }
        self.registers += count;
        self.registers - count
    }

    fn register(&self, name: &str) -> Option<RegRef> {
        let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let (prefix, number) = name.split_at(name.len() - digits);
        self.scopes.iter().rev().find_map(|scope| {
            scope.names.get(name).copied().or_else(|| {
                let number: u32 = number.parse().ok()?;
                let range = scope.ranges.iter().find(|r| r.0 == prefix && number < r.2)?;
                Some(RegRef::of(range.1 + number, range.3))
            })
        })
    }
}
