// What pages do besides being read: they refresh while open, and copy texts. Nothing else needs a script.
(function () {
  "use strict";

  var REFRESH_MS = 3000;

  function refresh(part) {
    if (document.hidden || part.contains(document.activeElement)) {
      return Promise.resolve();
    }
    return fetch(location.href, { credentials: "same-origin" }).then(function (answer) {
      return answer.ok ? answer.text() : Promise.reject(answer.status);
    }).then(function (text) {
      var page = new DOMParser().parseFromString(text, "text/html"),
        fresh = page.getElementById(part.id);
      if (fresh && fresh.innerHTML !== part.innerHTML) {
        part.replaceChildren.apply(part, Array.from(fresh.childNodes, function (node) {
          return document.importNode(node, true);
        }));
      }
    });
  }

  function keepLive(part) {
    var sign = document.getElementById("wh-live"),
      dot = sign && sign.querySelector(".status-dot");

    function again(isWell) {
      if (sign) {
        sign.hidden = false;
        sign.lastElementChild.textContent = isWell ? "Live" : "No answer, trying again";
        dot.classList.toggle("status-dot-live", isWell);
        dot.classList.toggle("status-dot-error", !isWell);
      }
      setTimeout(function () {
        refresh(part).then(function () { again(true); }, function () { again(false); });
      }, REFRESH_MS);
    }

    again(true);
  }

  document.querySelectorAll("[data-live]").forEach(keepLive);

  document.addEventListener("click", function (click) {
    var button = click.target.closest("[data-copy]"), label;
    if (!button) {
      return;
    }
    label = button.textContent;
    navigator.clipboard.writeText(document.getElementById(button.getAttribute("data-copy")).textContent).then(
      function () { button.textContent = "Copied"; },
      function () { button.textContent = "Cannot copy"; }
    ).then(function () {
      setTimeout(function () { button.textContent = label; }, 1500);
    });
  });

  document.querySelectorAll("[data-copy]").forEach(function (button) { button.hidden = !navigator.clipboard; });
}());
