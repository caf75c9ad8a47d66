// SPDX-License-Identifier: GPL-2.0

//! Puts mutants into the files of a folder, all at once: `switch FOLDER <LIST`, where the list is that of `cargo-mutants --list --json`.
//! Which of them is in, the function `crate::switch::is` says, of its number in the list; where none is, the code does what it did.
//!
//! Prints the numbers of those that it put in. It can't where a constant is computed: one program has one value for that; and it
//! does not where the mutant's text would be read as another expression than the code's with another operator.

use proc_macro2::{LineColumn, Span};
use quote::quote;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    error::Error,
    fs, io,
    path::Path,
};
use syn::{
    parse_quote, parse_str, spanned::Spanned, visit_mut, visit_mut::VisitMut, Arm, BinOp, Block,
    Expr, ExprMatch, ExprStruct, ImplItemFn, Item, ItemFn, Signature, TraitItemFn,
};

/// What cargo-mutants calls a kind of mutant, and where the code begins that it replaces.
type Place = (String, usize, usize);

/// A mutant: its number, and what it has in the place of the code.
#[derive(Clone)]
struct Mutant {
    number: u32,
    replacement: String,
}

/// Puts the mutants of a file into it.
struct Switch {
    mutants: HashMap<Place, Vec<Mutant>>,
    done: BTreeSet<u32>,
    /// How many functions the code at hand is in.
    depth: u32,
    /// The operator that it is an operand of: how tight that binds, and whether it is the right one.
    outer: Option<(u32, bool)>,
}

/// How tight an operator binds.
fn strength(operator: &BinOp) -> u32 {
    match operator {
        BinOp::Mul(_) | BinOp::Div(_) | BinOp::Rem(_) => 9,
        BinOp::Add(_) | BinOp::Sub(_) => 8,
        BinOp::Shl(_) | BinOp::Shr(_) => 7,
        BinOp::BitAnd(_) => 6,
        BinOp::BitXor(_) => 5,
        BinOp::BitOr(_) => 4,
        BinOp::And(_) => 2,
        BinOp::Or(_) => 1,
        BinOp::Eq(_) | BinOp::Ne(_) => 3,
        BinOp::Lt(_) | BinOp::Le(_) | BinOp::Gt(_) | BinOp::Ge(_) => 3,
        // Those that assign.
        _ => 0,
    }
}

/// Whether another operator in the text has the same operands. cargo-mutants changes that: a - b % c with / in the place of - is
/// (a / b) % c. `inner` is how tight those of the operands bind that are no single thing, `outer` is [`Switch::outer`].
fn has_same_operands(
    old: &BinOp,
    new: &BinOp,
    inner: [Option<u32>; 2],
    outer: Option<(u32, bool)>,
) -> bool {
    const COMPARISON: u32 = 3;
    let new = strength(new);
    // Of two that bind alike the first one has its operands first; comparisons can't stand side by side.
    let binds_first = |first: u32, then: u32| first > then || first == then && first != COMPARISON;
    let [left, right] = inner;
    new == strength(old)
        || left.is_none_or(|left| binds_first(left, new))
            && right.is_none_or(|right| right > new)
            && outer.is_none_or(|(outer, is_right)| match is_right {
                true => new > outer,
                false => binds_first(new, outer),
            })
}

impl Switch {
    /// Goes through what the code at hand is made of. Returns how tight its operands bind, if it has two and they are operators.
    fn operands(&mut self, code: &mut Expr) -> [Option<u32>; 2] {
        let Expr::Binary(binary) = code else {
            visit_mut::visit_expr_mut(self, code);
            return [None; 2];
        };
        let own = strength(&binary.op);
        [(&mut binary.left, false), (&mut binary.right, true)].map(|(operand, is_right)| {
            let inner = match &**operand {
                Expr::Binary(binary) => Some(strength(&binary.op)),
                _ => None,
            };
            self.outer = Some((own, is_right));
            self.visit_expr_mut(operand);
            inner
        })
    }

    /// The mutants of a kind that replace what begins here.
    fn at(&self, kind: &str, start: LineColumn) -> Vec<Mutant> {
        let place = (kind.to_owned(), start.line, start.column + 1);
        self.mutants.get(&place).cloned().unwrap_or_default()
    }

    /// The code, or in its place what `mutate` makes of it for the mutant that is in.
    fn choose(
        &mut self,
        code: &mut Expr,
        mutants: Vec<Mutant>,
        mutate: impl Fn(&Mutant) -> Option<Expr>,
    ) {
        let mut chosen = code.clone();
        for mutant in mutants {
            if let Some(mutated) = mutate(&mutant) {
                let number = mutant.number;
                chosen =
                    parse_quote!((if crate::switch::is(#number) { #mutated } else { #chosen }));
                self.done.insert(number);
            }
        }
        *code = chosen;
    }

    fn function(
        &mut self,
        signature: &mut Signature,
        block: &mut Block,
        visit: impl FnOnce(&mut Self, &mut Block),
    ) {
        let start = block.stmts.first().map(|first| first.span().start());
        self.depth += 1;
        visit(self, block);
        self.depth -= 1;
        for mutant in start
            .map(|start| self.at("FnValue", start))
            .unwrap_or_default()
        {
            let number = mutant.number;
            if let Ok(value) = parse_str::<Expr>(&mutant.replacement) {
                block.stmts.insert(
                    0,
                    parse_quote!(if crate::switch::is(#number) { return #value; }),
                );
                self.done.insert(number);
            }
        }
        if quote!(#block).to_string().contains("crate :: switch :: is") {
            // What it does is no longer known when it is built.
            signature.constness = None;
        }
    }

    fn arms(&mut self, code: &mut ExprMatch) {
        let starts = |arm: &Arm| {
            let guard = arm.guard.as_ref().map(|(_, guard)| guard.span().start());
            (arm.span().start(), guard)
        };
        let starts: Vec<_> = code.arms.iter().map(starts).collect();
        visit_mut::visit_expr_match_mut(self, code);
        for (arm, (start, guard)) in code.arms.iter_mut().zip(starts) {
            let mut condition = arm.guard.take().map(|(_, guard)| *guard);
            for Mutant {
                number,
                replacement,
            } in guard
                .map(|at| self.at("MatchArmGuard", at))
                .unwrap_or_default()
            {
                let value: Expr = parse_str(&replacement).expect("a guard is an expression");
                condition = condition.map(|guard| parse_quote!((if crate::switch::is(#number) { #value } else { #guard })));
                self.done.insert(number);
            }
            for Mutant { number, .. } in self.at("MatchArm", start) {
                let guard = condition.unwrap_or(parse_quote!(true));
                condition = Some(parse_quote!(!crate::switch::is(#number) && (#guard)));
                self.done.insert(number);
            }
            arm.guard = condition.map(|guard| (Default::default(), Box::new(guard)));
        }
    }

    fn fields(&mut self, code: &mut Expr, starts: Vec<LineColumn>) {
        let full = code.clone();
        for (at, start) in starts.into_iter().enumerate() {
            let mutants = self.at("StructField", start);
            self.choose(code, mutants, |_| without_field(full.clone(), at));
        }
    }
}

/// A struct's expression without the field at this place: what is there, the rest has.
fn without_field(code: Expr, at: usize) -> Option<Expr> {
    let Expr::Struct(mut code) = code else {
        return None;
    };
    let fields = std::mem::take(&mut code.fields).into_iter().enumerate();
    code.fields = fields
        .filter(|(number, _)| *number != at)
        .map(|(_, field)| field)
        .collect();
    code.fields.push_punct(Default::default());
    Some(Expr::Struct(code))
}

impl VisitMut for Switch {
    fn visit_item_mut(&mut self, item: &mut Item) {
        // What is computed when it is built stays as it is.
        if !matches!(item, Item::Const(_) | Item::Static(_) | Item::Macro(_)) {
            visit_mut::visit_item_mut(self, item);
        }
    }

    fn visit_item_fn_mut(&mut self, item: &mut ItemFn) {
        self.function(&mut item.sig, &mut item.block, |this, block| {
            this.visit_block_mut(block)
        });
    }

    fn visit_impl_item_fn_mut(&mut self, item: &mut ImplItemFn) {
        self.function(&mut item.sig, &mut item.block, |this, block| {
            this.visit_block_mut(block)
        });
    }

    fn visit_trait_item_fn_mut(&mut self, item: &mut TraitItemFn) {
        if let Some(block) = &mut item.default {
            self.function(&mut item.sig, block, |this, block| {
                this.visit_block_mut(block)
            });
        }
    }

    fn visit_expr_match_mut(&mut self, code: &mut ExprMatch) {
        self.arms(code);
    }

    fn visit_expr_mut(&mut self, code: &mut Expr) {
        let operator: Option<Span> = match code {
            Expr::Binary(binary) => Some(binary.op.span()),
            Expr::Unary(unary) => Some(unary.op.span()),
            _ => None,
        };
        let start = operator.map(|operator| operator.start());
        let outer = self.outer.take();
        let fields = match code {
            Expr::Struct(ExprStruct { fields, .. }) => {
                fields.iter().map(|field| field.span().start()).collect()
            }
            _ => vec![],
        };
        let inner = self.operands(code);
        if self.depth == 0 {
            return;
        }
        let of = |this: &Self, kind| start.map(|start| this.at(kind, start)).unwrap_or_default();
        match code.clone() {
            Expr::Binary(binary) => {
                let mutants = of(self, "BinaryOperator");
                self.choose(code, mutants, |mutant| {
                    let mut binary = binary.clone();
                    let new = parse_str::<BinOp>(&mutant.replacement).ok()?;
                    let old = std::mem::replace(&mut binary.op, new);
                    let same = has_same_operands(&old, &binary.op, inner, outer);
                    same.then_some(Expr::Binary(binary))
                });
            }
            Expr::Unary(unary) => {
                let mutants = of(self, "UnaryOperator");
                self.choose(code, mutants, |_| Some(*unary.expr.clone()));
            }
            Expr::Struct(_) => self.fields(code, fields),
            _ => {}
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("which folder?")?;
    let list: serde_json::Value = serde_json::from_reader(io::stdin())?;
    let mut files: BTreeMap<String, HashMap<Place, Vec<Mutant>>> = BTreeMap::new();
    for (at, mutant) in list.as_array().ok_or("no list")?.iter().enumerate() {
        let text = |field: &str| mutant[field].as_str().unwrap_or_default().to_owned();
        let start = &mutant["span"]["start"];
        let number = |field: &str| start[field].as_u64().unwrap_or_default() as usize;
        let place = (text("genre"), number("line"), number("column"));
        let mutants = files
            .entry(text("file"))
            .or_default()
            .entry(place)
            .or_default();
        let (number, replacement) = (at as u32, text("replacement"));
        mutants.push(Mutant {
            number,
            replacement,
        });
    }
    for (name, mutants) in files {
        let path = Path::new(&folder).join(name);
        let mut code = syn::parse_file(&fs::read_to_string(&path)?)?;
        let mut switch = Switch {
            mutants,
            done: BTreeSet::new(),
            depth: 0,
            outer: None,
        };
        switch.visit_file_mut(&mut code);
        fs::write(&path, quote!(#code).to_string())?;
        for number in switch.done {
            println!("{number}");
        }
    }
    Ok(())
}
