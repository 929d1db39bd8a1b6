// Keys and the edit's diff. The page works without; nothing of a response is ever run or parsed here.
"use strict";
const judge = document.getElementById("judge");
const undo = document.getElementById("undo");
const edit = document.getElementById("edit");
const edited = document.getElementById("edited");
const editing = document.getElementById("editing");
const diff = document.getElementById("diff");
const typed = {};
let asked = 0;

function chosen() {
  const radio = judge && judge.querySelector("input[name=verdict]:checked");
  const side = radio ? radio.value.split("/")[0] : "";
  return side === "first" || side === "second" ? side : "";
}

function source(side) {
  // A text area drops the first line end of its content, so the page writes one more.
  return document.querySelector(`#${side} .source`).value;
}

function mark() {
  for (const side of ["first", "second"]) {
    document.getElementById(side).classList.toggle("chosen", chosen() === side);
  }
  if (edit.open) startEdit();
  document.getElementById("reason").required = judge.verdict.value === "skip";
}

function startEdit() {
  const side = chosen();
  if (!side || editing.value === side) return;
  // What was typed for the other response is kept for when it is chosen again.
  if (editing.value) typed[editing.value] = edited.value;
  editing.value = side;
  edited.value = typed[side] ?? source(side);
  showDiff();
}

async function showDiff() {
  const number = ++asked;
  const response = await fetch("/diff", {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Check": judge.dataset.check },
    body: JSON.stringify({ before: source(editing.value), after: edited.value }),
  });
  if (!response.ok || number !== asked) return;
  const parts = (await response.json()).map(([kind, text]) => {
    const tag = { same: "span", gone: "del", new: "ins" }[kind];
    const part = document.createElement(tag);
    part.textContent = text;
    return part;
  });
  diff.replaceChildren(...parts);
}

if (judge) {
  let timer = 0;
  judge.addEventListener("change", mark);
  edit.addEventListener("toggle", () => {
    if (edit.open) {
      startEdit();
      edited.focus();
    }
  });
  edited.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(showDiff, 150);
  });
  judge.addEventListener("submit", () => {
    if (!edit.open) editing.value = "";
    judge.querySelector(".submit").disabled = true;
  });
  mark();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("textarea, input:not([type=radio])");
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === "u" && undo && !undo.disabled) undo.click();
  if (!judge) return;
  const radio = judge.querySelector(`input[data-key="${CSS.escape(event.key)}"]`);
  if (radio) {
    radio.checked = true;
    mark();
  } else if (event.key === "e" && chosen()) {
    event.preventDefault();
    edit.open = true;
    startEdit();
    edited.focus();
  } else if (event.key === "r") {
    event.preventDefault();
    document.getElementById("reason").focus();
  } else if (event.key === "Enter") {
    event.preventDefault();
    judge.requestSubmit();
  }
});
